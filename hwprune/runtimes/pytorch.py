"""PyTorch itself: a ``torch.export`` program, eager, compiled, or as a CUDA graph."""

from __future__ import annotations

import abc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import CUDA_EVENT, Arrays, Operator, Runner, Runtime, RuntimeSettings, library_version, not_installed

MODES = ("eager", "compile", "cuda-graph")
_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@final
class TorchRunner(Runner):
    """A module on its device, in its precision.

    ``semi_structured``: linear layers whose weights are 2:4 are stored compressed and run on sparse tensor cores (CUDA, 16 bits).
    """

    def __init__(self, module: Any, device: str, settings: RuntimeSettings) -> None:
        import torch

        self._torch, self._device = torch, device
        self._mode = str(settings.options.get("mode", "eager"))
        if self._mode not in MODES:
            raise ValueError(f"mode {self._mode!r} is not one of {', '.join(MODES)}")
        if self._mode == "cuda-graph" and device != "cuda":
            raise ValueError("mode cuda-graph needs the runtime pytorch-cuda")
        self._type = getattr(torch, _TYPES[settings.precision])
        self._module = module.to(device).to(self._type)
        self._sparse = self._compress() if settings.options.get("semi_structured") else []
        self._call = torch.compile(self._module) if self._mode == "compile" else self._module

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        with self._torch.inference_mode():
            return [
                x.float().cpu().numpy() if x.is_floating_point() else x.cpu().numpy() for x in self._flat(self._eager(inputs))
            ]

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        once = self._once(inputs)
        wait = self._torch.cuda.synchronize if self._device == "cuda" else None

        def call() -> None:
            once()
            if wait is not None:
                wait()

        return call

    def timer(self, inputs: Arrays) -> Callable[[int], float] | None:
        if self._device != "cuda":
            return None
        once = self._once(inputs)
        event: Any = self._torch.cuda.Event

        def seconds(runs: int) -> float:
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            for _ in range(runs):
                once()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e-3

        return seconds

    def profile(self, inputs: Arrays, runs: int) -> list[Operator]:
        from torch.profiler import ProfilerActivity, profile

        once = self._once(inputs)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._device == "cuda" else [])
        seconds_by_operator: dict[str, list[float]] = {}
        for _ in range(runs):
            with profile(activities=activities) as record:
                once()
                if self._device == "cuda":
                    self._torch.cuda.synchronize()
            for item in record.key_averages():
                self_time_us = item.self_device_time_total if self._device == "cuda" else item.self_cpu_time_total
                if self_time_us > 0:
                    seconds_by_operator.setdefault(item.key, []).append(self_time_us * 1e-6)
        return [Operator(name, name, statistics.median(values)) for name, values in seconds_by_operator.items()]

    def facts(self) -> dict[str, Any]:
        return {"mode": self._mode, "device": self._device, "semi_structured": self._sparse}

    # -- inside ------------------------------------------------------------------------------

    def _once(self, inputs: Arrays) -> Callable[[], object]:
        """One run without waiting for it; gradients are off inside, whoever calls."""
        tensors, torch, call = self._tensors(inputs), self._torch, self._call
        with torch.inference_mode():
            for _ in range(3):  # compiles here, and not in the first timed run
                call(*tensors)
        if self._mode == "cuda-graph":
            return self._graph(tensors)

        def once() -> object:
            with torch.inference_mode():
                return call(*tensors)

        return once

    def _graph(self, tensors: list[Any]) -> Callable[[], object]:
        torch = self._torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):
                self._module(*tensors)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self._module(*tensors)

        kept = tensors  # the graph reads the inputs' memory: it must not be given away while the graph lives

        def replay() -> object:
            return graph.replay(), kept

        return replay

    def _tensors(self, inputs: Arrays) -> list[Any]:
        torch = self._torch
        tensors = [
            torch.from_numpy(np.array(array)).to(self._device) for array in inputs
        ]  # a copy: the file's arrays are read-only
        return [x.to(self._type) if x.is_floating_point() else x for x in tensors]

    def _eager(self, inputs: Arrays) -> Any:
        return self._module(*self._tensors(inputs))

    def _flat(self, value: Any) -> list[Any]:
        if isinstance(value, self._torch.Tensor):
            return [value]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
        return [x for item in items for x in self._flat(item)]

    def _compress(self) -> list[str]:
        """Names of the weights that were stored as 2:4; those of wrong size or density stay dense."""
        torch = self._torch
        if self._device != "cuda" or self._type == torch.float32:
            raise ValueError("semi_structured needs the runtime pytorch-cuda and fp16 or bf16")
        done = []
        for name, parameter in list(self._module.named_parameters()):
            if parameter.ndim != 2 or parameter.shape[0] % 32 or parameter.shape[1] % 64:
                continue
            groups = (parameter.detach() != 0).view(parameter.shape[0], -1, 4).sum(-1)
            if int(groups.max()) > 2:
                continue
            owner, _, leaf = name.rpartition(".")
            sparse = torch.sparse.to_sparse_semi_structured(parameter.detach())
            setattr(self._module.get_submodule(owner), leaf, torch.nn.Parameter(sparse, requires_grad=False))
            done.append(name)
        return done


class _PyTorch(Runtime, abc.ABC):
    file = "model.pt2"
    options = frozenset({"mode", "semi_structured"})
    precisions: tuple[str, ...] = ("fp32", "bf16")

    def version(self) -> str:
        return library_version("torch")

    def prepare(self) -> None:
        import io

        import torch

        program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        torch.export.load(buffer).module()(torch.zeros(1))

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        import torch

        if path.suffix != ".pt2":
            raise ValueError(f"{path.name} is not a .pt2 file, which is what PyTorch loads without the model's code")
        torch.set_num_threads(settings.threads)
        program = torch.export.load(path)
        if self.device == "cuda":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, "cuda")
        return TorchRunner(program.module(check_guards=False), self.device, settings)


@final
class PyTorchCpu(_PyTorch):
    """Option ``mode``: eager or compile."""

    name = "pytorch-cpu"
    description = "PyTorch on the CPU (eager or torch.compile)"

    def missing(self) -> str | None:
        return not_installed("torch", "cpu")


@final
class PyTorchCuda(_PyTorch):
    """Options ``mode``: eager, compile or cuda-graph; ``semi_structured``: true runs 2:4 weights on sparse tensor cores."""

    name = "pytorch-cuda"
    description = "PyTorch on an NVIDIA GPU (eager, torch.compile or CUDA graphs; 2:4)"
    device = "cuda"
    precisions = ("fp32", "fp16", "bf16")

    def missing(self) -> str | None:
        if reason := not_installed("torch", "gpu"):
            return reason
        import torch

        return None if torch.cuda.is_available() else "this PyTorch sees no GPU (torch.cuda.is_available() is false)"

    def clock(self, settings: RuntimeSettings) -> str:
        return CUDA_EVENT
