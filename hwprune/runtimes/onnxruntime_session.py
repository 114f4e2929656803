"""What the runtimes that are providers of ONNX Runtime share."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Arrays, Operator, Runner, RuntimeSettings, library_version, named, not_installed

PACKAGES = ("onnxruntime-gpu", "onnxruntime")
"""Both install the module `onnxruntime`; where the GPU's is there, it is the one that runs."""


def version() -> str:
    return library_version(*PACKAGES)


def prepare(provider: str) -> None:
    """A session of nothing: what the library and its provider take once is taken now."""
    import onnx
    import onnxruntime

    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "nothing", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[provider])
    session.run(None, {"x": np.zeros(1, np.float32)})


def missing_provider(provider: str) -> str | None:
    """Why the provider can't be used: ONNX Runtime is not installed, or built without it."""
    if reason := not_installed("onnxruntime", "cpu" if provider.startswith("CPU") else "gpu"):
        return reason
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        return f"this ONNX Runtime has no {provider} (it has {', '.join(available)}): pip install 'hwprune[gpu]'"
    return None


def text(value: Any) -> str:
    """An option as ONNX Runtime spells it: its flags are 0 and 1."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def options(settings: RuntimeSettings) -> Any:
    """Session options. Threads don't spin: on a shared machine they steal time from each other and hide in nobody's numbers."""
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = settings.threads
    session_options.inter_op_num_threads = 1
    session_options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session_options.log_severity_level = 3
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return session_options


@final
class OnnxRuntimeRunner(Runner):
    """A session on one provider.

    Inputs are bound to values that live on the provider's device, so that what is timed holds no copies from the host.
    """

    def __init__(
        self, path: Path, make: Callable[[], Any], provider: str, provider_options: Mapping[str, str], device: str
    ) -> None:
        import onnxruntime

        self._path, self._make, self._device = path, make, device
        self._provider = (provider, dict(provider_options)) if provider_options else provider
        self._session = onnxruntime.InferenceSession(str(path), make(), providers=[self._provider], enable_fallback=0)
        # Without the fallback, a device that is lost in the middle is an error and not a session on the CPU.
        # ONNX Runtime replaces a provider that can't start by the CPU and only logs it.
        got = self._session.get_providers()[0]
        if got != provider:
            raise RuntimeError(f"{provider} could not start, ONNX Runtime fell back to {got}: are its CUDA libraries installed?")
        self._inputs = [node.name for node in self._session.get_inputs()]

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        return list(self._session.run(None, named(self._inputs, inputs)))

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        feed, session = named(self._inputs, inputs), self._session
        if self._device == "cpu":
            return lambda: session.run(None, feed)
        import onnxruntime

        binding = session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0))
        for node in session.get_outputs():
            binding.bind_output(node.name, self._device, 0)
        return lambda: session.run_with_iobinding(binding)  # waits for the device

    def profile(self, inputs: Arrays, runs: int) -> list[Operator]:
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            settings = self._make()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = onnxruntime.InferenceSession(str(self._path), settings, providers=[self._provider], enable_fallback=0)
            feed = named(self._inputs, inputs)
            for _ in range(runs + 3):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        return _operators(events, skip=3)

    def facts(self) -> dict[str, Any]:
        return {"provider": self._session.get_providers()[0]}


def _operators(events: Sequence[Mapping[str, Any]], skip: int) -> list[Operator]:
    """Kernel events, by node in the order of their first appearance; the first runs are warm-up."""
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            times.setdefault(node, []).append(float(event["dur"]) * 1e-6)
            kinds[node] = str(event.get("args", {}).get("op_name", ""))
    return [Operator(node, kinds[node], statistics.median(values[skip:] or values)) for node, values in times.items()]
