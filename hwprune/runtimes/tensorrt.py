"""TensorRT itself: an engine built from the ONNX file for the measured shapes.

Networks are strongly typed: TensorRT 11 has no other kind and no precision flags, TensorRT 10 has both (the creation flag is
accepted by both), so the precision is the file's. All builds share one timing cache: the same layer gets the same
tactic in every candidate. Every TensorRT name used here is checked against the published bindings by tests/runtimes. One
file because building, caching and running use one library that is imported late.

One file because a runtime is one file, and this one brings its own buffers, profiles and log.
"""

from __future__ import annotations

import fcntl
import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import CUDA_EVENT, Arrays, Operator, Runner, Runtime, RuntimeSettings, library_version, not_installed
from hwprune.runtimes.sparsity import layouts
from hwprune.runtimes.tensorrt_sparsity import SparsityLog, inspected, verdicts

WORKSPACE = 4 << 30


def library() -> Any:
    """The ``tensorrt`` module."""
    import tensorrt

    return tensorrt


def make_logger(trt: Any, log: SparsityLog) -> Any:
    """A logger that keeps what `SparsityLog` reads, and errors; nothing is printed."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes from a library that is not always there
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.read(msg)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                log.errors.append(msg)

    return Logger()


class RefusedError(RuntimeError):
    """The parser refuses nodes of a model.

    Attributes:
        nodes: ``name``, ``operator`` and ``reason`` of each.
    """

    def __init__(self, nodes: list[dict[str, str]]) -> None:
        self.nodes = nodes
        told = "; ".join(f"{node['operator']} ({node['name']}): {node['reason']}" for node in nodes)
        super().__init__(f"TensorRT can't read the model: {told}")


def build(
    trt: Any,
    path: Path,
    settings: RuntimeSettings,
    logger: Any,
    log: SparsityLog,
    configure: Callable[[Any], None] = lambda _config: None,
) -> Any:
    """The serialized engine.

    Args:
        configure: sets more of the builder's configuration.

    Raises:
        RefusedError: it has operators that TensorRT does not know, or not in this form.
        RuntimeError: no engine can be built; with TensorRT's own words.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise RefusedError([_refused(path, error) for error in errors])
    config = builder.create_builder_config()
    configure(config)
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.options.get("workspace_bytes", WORKSPACE)))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if "builder_optimization_level" in settings.options:
        config.builder_optimization_level = int(settings.options["builder_optimization_level"])
    if "avg_timing_iterations" in settings.options:
        config.avg_timing_iterations = int(settings.options["avg_timing_iterations"])
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = _shape(tuple(tensor.shape), settings, index)
        profile.set_shape(tensor.name, shape, shape, shape)  # tuned for exactly what is measured
    config.add_optimization_profile(profile)
    with _timing_cache(trt, config, settings):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT can't build an engine: {'; '.join(log.errors[-3:]) or 'no reason given'}")
    return plan


def _refused(path: Path, error: Any) -> dict[str, str]:
    """``name``, ``operator`` and ``reason``. Some errors don't say their node, but in which function it was read."""
    operator = error.node_operator() or error.func().removeprefix("import")
    name = error.node_name()
    if not name:
        import onnx

        known = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node if node.op_type == operator]
        name = known[0] if len(known) == 1 else f"one of {len(known)}"
    return {"name": name, "operator": operator, "reason": error.desc()}


def _shape(declared: tuple[int, ...], settings: RuntimeSettings, index: int) -> tuple[int, ...]:
    if index < len(settings.shapes):
        return settings.shapes[index]
    return tuple(max(1, size) for size in declared)


@contextmanager
def _timing_cache(trt: Any, config: Any, settings: RuntimeSettings) -> Iterator[None]:
    """The cache that all builds of this device share. It is locked while it is read and written, not while an engine is built."""
    if settings.cache is None:
        yield
        return
    import torch

    device = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name())
    path = Path(settings.cache) / f"tensorrt-{trt.__version__}-{device}.timing"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        stored = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(stored), False):
        # Another driver's or device's: begin anew rather than fail every build.
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    cache = config.get_timing_cache()
    if cache is None:
        return
    with _locked(path):
        now = path.read_bytes() if path.is_file() else b""
        if now and now != stored:
            cache.combine(config.create_timing_cache(now), False)
        temporary = path.with_suffix(".part")
        temporary.write_bytes(bytes(cache.serialize()))
        temporary.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@final
class TensorRtRunner(Runner):
    """An engine with its own stream and device buffers (torch tensors).

    The engine has one shape. Larger batches run in pieces; a last piece that is too small is filled up with its first example.
    """

    def __init__(self, trt: Any, path: Path, settings: RuntimeSettings) -> None:
        import torch

        self._trt, self._torch = trt, torch
        self._log = SparsityLog()
        self._logger = make_logger(trt, self._log)
        self._layouts = layouts(path, 2, 4)
        plan = build(trt, path, settings, self._logger, self._log)
        self._plan_bytes = int(plan.nbytes)
        self._engine = trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RuntimeError(f"TensorRT can't load its own engine: {'; '.join(self._log.errors[-3:])}")
        self._context = self._engine.create_execution_context()
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph = bool(settings.options.get("cuda_graph", False))
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = trt.TensorIOMode.INPUT
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == inputs]
        self._outputs = [name for name in names if self._engine.get_tensor_mode(name) != inputs]
        shapes = [*settings.shapes, *[() for _ in self._inputs]]
        self._shapes = {
            n: tuple(s) or tuple(self._engine.get_tensor_shape(n)) for n, s in zip(self._inputs, shapes, strict=False)
        }
        self._buffers = {name: self._buffer(name) for name in (*self._inputs, *self._outputs)}

    def _buffer(self, name: str) -> Any:
        torch, trt = self._torch, self._trt
        kinds = {
            trt.DataType.FLOAT: torch.float32, trt.DataType.HALF: torch.float16, trt.DataType.BF16: torch.bfloat16,
            trt.DataType.INT8: torch.int8, trt.DataType.INT32: torch.int32, trt.DataType.INT64: torch.int64,
            trt.DataType.BOOL: torch.bool, trt.DataType.UINT8: torch.uint8,
        }  # fmt: skip
        if name in self._shapes:
            self._context.set_input_shape(name, self._shapes[name])
        shape = tuple(self._context.get_tensor_shape(name))
        buffer = torch.empty(shape, dtype=kinds[self._engine.get_tensor_dtype(name)], device="cuda")
        self._context.set_tensor_address(name, buffer.data_ptr())
        return buffer

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        if len(inputs) < len(self._inputs):
            raise ValueError(f"the model takes {len(self._inputs)} inputs {self._inputs}, got {len(inputs)}")
        size = self._shapes[self._inputs[0]][0]
        total = len(inputs[0])
        parts: list[list[Any]] = []
        for start in range(0, total, size):
            self._fill([array[start : start + size] for array in inputs])
            self._execute()
            self._stream.synchronize()
            left = min(size, total - start)
            parts.append([self._host(self._buffers[name])[:left] for name in self._outputs])
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def _host(self, buffer: Any) -> np.ndarray[Any, Any]:
        host = buffer.float() if buffer.is_floating_point() else buffer
        array: np.ndarray[Any, Any] = host.cpu().numpy()
        return array

    def _fill(self, inputs: Arrays) -> None:
        for name, array in zip(self._inputs, inputs, strict=False):
            wanted = self._shapes[name]
            if array.shape[1:] != wanted[1:]:
                raise ValueError(f"input {name} has shape {list(wanted)}, got {list(array.shape)}")
            if len(array) < wanted[0]:
                array = np.concatenate([array, np.repeat(array[:1], wanted[0] - len(array), axis=0)])  # noqa: PLW2901
            self._buffers[name].copy_(self._torch.from_numpy(np.array(array)))
        self._torch.cuda.synchronize()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError(f"TensorRT could not run the engine: {'; '.join(self._log.errors[-3:])}")

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        once = self._once(inputs)

        def call() -> None:
            once()
            self._stream.synchronize()

        return call

    def _once(self, inputs: Arrays) -> Callable[[], object]:
        self._fill([array[: self._shapes[n][0]] for n, array in zip(self._inputs, inputs, strict=False)])
        if not self._graph:
            return self._execute
        torch = self._torch
        self._execute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._execute()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay

    def timer(self, inputs: Arrays) -> Callable[[int], float] | None:
        once, torch = self._once(inputs), self._torch

        def seconds(runs: int) -> float:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(self._stream)
            for _ in range(runs):
                once()
            end.record(self._stream)
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e-3

        return seconds

    def profile(self, inputs: Arrays, runs: int) -> list[Operator]:
        times: dict[str, list[float]] = {}
        trt = self._trt

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms * 1e-3)

        self._fill([array[: self._shapes[n][0]] for n, array in zip(self._inputs, inputs, strict=False)])
        profiler = Profiler()
        context = self._engine.create_execution_context()
        # One of its own: a profiler slows what it watches, and can't be taken off again.
        for name in self._inputs:
            context.set_input_shape(name, self._shapes[name])
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.data_ptr())
        context.profiler = profiler
        for _ in range(runs):
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError(f"TensorRT could not run the engine: {'; '.join(self._log.errors[-3:])}")
            self._stream.synchronize()
        tactics = {layer["name"]: layer["tactic"] for layer in self._layers()}
        return [Operator(name, "", statistics.median(values), tactics.get(name, "")) for name, values in times.items()]

    def facts(self) -> dict[str, Any]:
        return {
            "engine_bytes": self._plan_bytes,
            "device_memory_bytes": int(self._engine.device_memory_size_v2),
            "layers": self._layers(),
            "sparsity": verdicts(self._layouts, self._log, self._layers()),
        }

    def _layers(self) -> list[dict[str, str]]:
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return inspected(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))


@final
class TensorRt(Runtime):
    """Options: ``workspace_bytes``, ``builder_optimization_level``, ``avg_timing_iterations``, ``cuda_graph``."""

    name = "tensorrt"
    description = "TensorRT, engines built on this machine"
    device = "cuda"
    precisions = ("fp32", "fp16", "int8")
    options = frozenset({"workspace_bytes", "builder_optimization_level", "avg_timing_iterations", "cuda_graph"})

    def missing(self) -> str | None:
        if reason := not_installed("tensorrt", "gpu"):
            return reason
        try:
            library()
        except (ImportError, OSError) as error:
            return f"tensorrt can't be imported: {error}"
        import torch

        return None if torch.cuda.is_available() else "PyTorch, which holds the buffers, sees no GPU"

    def version(self) -> str:
        return library_version("tensorrt", "tensorrt_cu13", "tensorrt_cu12")

    def precision_of_file(self, precision: str) -> str:
        return "fp16" if precision == "int8" else precision  # strongly typed: the file says it

    def clock(self, settings: RuntimeSettings) -> str:
        return CUDA_EVENT

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        return TensorRtRunner(library(), path, settings)
