"""Models that can't be traced: no axis can be cut, but the weights of their layers still take masks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, final

import torch
from torch import fx, nn

from hwprune.errors import UnknownNameError, UsageError
from hwprune.structure.axes import Axis
from hwprune.structure.branches import Branch
from hwprune.structure.dims import BoolArray, IntArray
from hwprune.structure.model_graph import Matrix, ModelGraph
from hwprune.structure.torch.rebuilding import assign

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@final
class OpaqueGraph(ModelGraph):
    """A model as one indivisible step.

    Attributes:
        reason: why it can't be traced, in one sentence.
    """

    axes: tuple[Axis, ...] = ()

    def __init__(self, model: nn.Module, example_inputs: tuple[torch.Tensor, ...], reason: str) -> None:
        self.reason = reason
        self._model = model
        self._inputs = example_inputs
        self.module = _whole(model, len(example_inputs))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        matrices: dict[str, Matrix] = {}
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) and id(layer.weight) in names:
                kind, groups = ("linear", 1) if isinstance(layer, nn.Linear) else ("conv", layer.groups)
                name = names[id(layer.weight)]
                matrices.setdefault(name, Matrix(name, kind, tuple(layer.weight.shape), groups))
        self.matrices = tuple(matrices.values())

    @property
    def branches(self) -> tuple[Branch, ...]:
        return ()

    def axis(self, name: str) -> Axis:
        raise UnknownNameError("axis", name, ())

    def slices(self, axis: Axis, parameter: str, dim: int) -> IntArray:
        raise UnknownNameError("axis", axis.name, ())

    def parameter_count(self, counts: Mapping[str, int], drop: Collection[str] = ()) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    @torch.no_grad()
    def macs(self, counts: Mapping[str, int], batch: int = 1, drop: Collection[str] = ()) -> int:
        """Count the multiply-accumulates of the linear and convolution layers that the example inputs pass through."""
        total = 0

        def count(layer: Any, _inputs: Any, output: torch.Tensor) -> None:
            nonlocal total
            per_output = layer.weight[0].numel()
            total += output.numel() * per_output

        layers = [layer for layer in self._model.modules() if isinstance(layer, (nn.Linear, *_CONVOLUTIONS))]
        handles = [layer.register_forward_hook(count) for layer in layers]
        try:
            self._model(*self._inputs)
        finally:
            for handle in handles:
                handle.remove()
        return total

    def dead(self, drop: Collection[str]) -> set[str]:
        return set()

    def selected(self, keeps: Mapping[str, torch.Tensor]) -> dict[str, list[BoolArray]]:
        return {}

    def cut(self, keeps: Mapping[str, torch.Tensor], drop: Collection[str] = ()) -> fx.GraphModule:
        if keeps or drop:
            raise UsageError(f"nothing can be cut: {self.reason}")
        return _whole(copy.deepcopy(self._model), len(self._inputs))

    def reordered(
        self, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]
    ) -> dict[str, list[IntArray | None]]:
        return {}

    def shape(self, parameter: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(dict(self._model.named_parameters())[parameter].shape)

    def reorder(self, module: fx.GraphModule, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]) -> None:
        if orders:
            raise UsageError(f"nothing can be reordered: {self.reason}")

    def feeding_axis(self, matrix: Matrix) -> Axis | None:
        return None

    def mask(self, keeps: Mapping[str, torch.Tensor], drop: Collection[str] = ()) -> fx.GraphModule:
        return self.cut(keeps, drop)


class _Forward:
    """The model's forward as a function, for a graph of one node."""

    __name__ = "forward"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *inputs: torch.Tensor) -> Any:
        return self.model(*inputs)


def opaque_model(module: nn.Module) -> nn.Module | None:
    """The model inside a module that `OpaqueGraph` made, or None for any other module."""
    if isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            if isinstance(node.target, _Forward):
                return node.target.model
    return None


def _whole(model: nn.Module, inputs: int) -> fx.GraphModule:
    """The model as a GraphModule that holds its parameters under their own names."""
    graph = fx.Graph()
    placeholders = [graph.placeholder(f"input_{position}") for position in range(inputs)]
    graph.output(graph.call_function(_Forward(model), tuple(placeholders)))
    module = fx.GraphModule(nn.Module(), graph, class_name=type(model).__name__)
    for name, child in model.named_children():
        module.add_module(name, child)
    persistent = set(model.state_dict())
    for name, tensor in [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]:
        assign(module, name, tensor, persistent=name in persistent)
    return module.eval()
