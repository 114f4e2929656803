"""`AxisGraph`: a traced model, its axes, and how to cut or mask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from math import prod

import torch
from torch import fx, nn

from hwprune.structure.axes import Axis, AxisTable
from hwprune.structure.dims import BoolArray, Dim, IntArray, Space
from hwprune.structure.rules import Edit, Value


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weight of a linear or convolution layer, shape (out, in / groups, *kernel)."""

    parameter: str
    kind: str
    shape: tuple[int, ...]
    groups: int


class AxisGraph:
    """A traced model; made by `hwprune.trace`. Never changes: cut and mask return new modules.

    Attributes:
        axes: every axis that a parameter carries, in graph order, frozen ones included.
        matrices: the weights that mask patterns apply to, in graph order.
        module: the dense model as an ``nn.Module`` with the original parameter names. It shares its tensors with the model that
            was traced: changing that model's weights changes it.

    Limits of ``train()`` on a cut model: dropout inside fused attention stays off (the trace is made in eval mode), and
    ``num_batches_tracked`` does not count.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        space: Space,
        parameters: Mapping[str, Value],
        edits: Mapping[str, list[Edit]],
        matrices: list[Matrix],
        work: list[tuple[Dim, ...]],
        free_sizes: frozenset[int],
        unmasked: Set[tuple[str, int]] = frozenset(),
    ) -> None:
        self.module = module
        self.matrices = tuple(matrices)
        self._table = AxisTable(space, parameters)
        self._space = space
        self._parameters = self._table.parameters
        self._edits = dict(edits)
        self._work = work
        self._free_sizes = free_sizes
        self._unmasked = unmasked
        self.axes = self._table.axes

    # -- reading -----------------------------------------------------------------------------

    def axis(self, name: str) -> Axis:
        """The axis of that name. Raises `UnknownNameError`."""
        return self._table.axis(name)

    def slices(self, axis: Axis, parameter: str, dim: int) -> IntArray:
        """For each position of the parameter's dim the index along ``axis``, or -1; shape (size of the dim,)."""
        return self._table.slices(axis, parameter, dim)

    def shape(self, parameter: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a parameter after a cut that keeps ``counts[axis name]`` indices."""
        return self._table.shape(parameter, counts)

    def parameter_count(self, counts: Mapping[str, int]) -> int:
        """Number of parameters after such a cut, predicted without cutting."""
        own = dict(self.module.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        for name, parameter in own.items():  # of tied names the one that the graph reads knows the axes
            if id(parameter) not in first or name in self._parameters:
                first[id(parameter)] = name
        traced = sum(prod(self.shape(name, counts)) for name in first.values() if name in self._parameters)
        return traced + sum(own[name].numel() for name in first.values() if name not in self._parameters)

    def macs(self, counts: Mapping[str, int], batch: int = 1) -> int:
        """Multiply-accumulates of matrix products, convolutions and attention after such a cut, without running it.

        ``batch`` stands for every size that is known only at run time.
        """
        numbers = self._table.numbers(counts)
        total = 0
        for dims in self._work:
            product = 1
            for dim in dims:
                for leaf in self._space.leaves(dim):
                    if leaf.size in self._free_sizes:
                        numbers[leaf.number] = batch
                product *= self._space.kept(dim, numbers)
            total += product
        return total

    def selected(self, keeps: Mapping[str, torch.Tensor]) -> dict[str, list[BoolArray]]:
        """For every tensor that a cut changes, one keep mask a dim; arguments and errors as `cut`."""
        masks = self._table.masks(keeps)
        return {
            name: [self._space.keep(dim, masks) for dim in value.dims]
            for name, value in self._parameters.items()
            if self._table.touched(value, masks)
        }

    # -- changing ----------------------------------------------------------------------------

    def cut(self, keeps: Mapping[str, torch.Tensor]) -> nn.Module:
        """The model with the removed indices physically gone.

        Args:
            keeps: axis name -> bool tensor (axis.size,), True = stays. At least one index must stay.

        Returns:
            A trainable module with the original parameter names; the dense model is not touched.

        Raises:
            UsageError: an axis that is unknown or frozen, or a mask of the wrong shape or type.
        """
        masks = self._table.masks(keeps)
        counts = {number: int(mask.sum()) for number, mask in masks.items()}

        def kept(dim: Dim) -> int:
            return self._space.kept(dim, counts)

        graph, new = self._copy_graph()
        for old in self.module.graph.nodes:
            for edit in self._edits.get(old.name, ()):
                edit(new[old], kept)
        return self._rebuild(graph, lambda tensor, value: self._select(tensor, value, masks))

    def mask(self, keeps: Mapping[str, torch.Tensor]) -> nn.Module:
        """The model in its original shapes with the removed slices zeroed: what ``cut`` must equal.

        Arguments and errors as for `cut`.
        """
        masks = self._table.masks(keeps)

        def zero(tensor: torch.Tensor, value: Value) -> torch.Tensor:
            result = tensor.detach().clone()
            for position, keep in self._table.touched(value, masks):
                if (value.parameter, position) in self._unmasked:
                    continue
                gone = torch.from_numpy(~keep).to(result.device)
                result.index_fill_(position, gone.nonzero().squeeze(1), 0)
            return result

        return self._rebuild(self._copy_graph()[0], zero)

    def _copy_graph(self) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        """A copy without the recorded sizes (those of the dense model), and old node -> new node."""
        graph = fx.Graph()
        graph._codegen = self.module.graph._codegen  # how inputs and outputs are packed; never changes
        new: dict[fx.Node, fx.Node] = {}
        for old in self.module.graph.nodes:
            new[old] = graph.node_copy(old, lambda node: new[node])
            new[old].meta = {}
        return graph, new

    def _select(self, tensor: torch.Tensor, value: Value, masks: Mapping[int, BoolArray]) -> torch.Tensor:
        result = tensor.detach()
        for position, keep in self._table.touched(value, masks):
            stays = torch.from_numpy(keep.nonzero()[0]).to(result.device)
            result = result.index_select(position, stays)
        return result.clone() if result.data_ptr() == tensor.data_ptr() else result.contiguous()

    def _rebuild(self, graph: fx.Graph, change: Callable[[torch.Tensor, Value], torch.Tensor]) -> nn.Module:
        root = nn.Module()
        done: dict[int, torch.Tensor] = {}  # tied parameters stay tied
        kept_names = set(self.module.state_dict())
        state = {
            **dict(self.module.named_parameters(remove_duplicate=False)),
            **dict(self.module.named_buffers(remove_duplicate=False)),
        }
        values = {id(state[name]): value for name, value in self._parameters.items() if name in state}
        for name, tensor in state.items():
            if id(tensor) not in done:
                value = values.get(id(tensor))
                new = change(tensor, value) if value is not None else tensor.detach().clone()
                if isinstance(tensor, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                done[id(tensor)] = new
            assign(root, name, done[id(tensor)], persistent=name in kept_names)
        for node in graph.nodes:  # nested graphs of higher-order operators, and flags
            if node.op == "get_attr" and isinstance(part := getattr(self.module, str(node.target), None), nn.Module):
                root.add_module(str(node.target), part)
        module = fx.GraphModule(root, graph, class_name=type(self.module).__name__)
        for name in state:
            assign(module, name, done[id(state[name])], persistent=name in kept_names)
        module.train(self.module.training)
        return module


def assign(module: nn.Module, name: str, tensor: torch.Tensor, persistent: bool = True) -> None:
    """Set a parameter or buffer by its dotted name; missing containers are made."""
    *path, last = name.split(".")
    for part in path:
        child = module._modules.get(part)
        if child is None:
            child = nn.Module()
            module.add_module(part, child)
        module = child
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor, persistent=persistent)
