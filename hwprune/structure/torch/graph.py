"""`AxisGraph`: a traced model, its axes, and how to cut or mask it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from math import prod
from typing import Any, TypeVar, final

import torch
from torch import fx

from hwprune.structure import branches
from hwprune.structure.axes import Axis, AxisTable
from hwprune.structure.borders import TokenAxis
from hwprune.structure.branches import Branch
from hwprune.structure.dim_masks import DimMasks
from hwprune.structure.dims import BoolArray, Dim, IntArray, Space
from hwprune.structure.model_graph import Matrix, ModelGraph
from hwprune.structure.torch.dag import SUMS_IN_PLACE, dag_of, erase_dropped
from hwprune.structure.torch.rebuilding import copy_graph, rebuild
from hwprune.structure.torch.rules import Edit, Value
from hwprune.structure.torch.token_graph import TokenGraph
from hwprune.structure.torch.work import WorkCount

T = TypeVar("T")
Finish = Callable[[fx.Graph, Mapping[str, fx.Node], Callable[[Dim], int]], None]


@final
class AxisGraph(ModelGraph):
    """A traced model; made by `hwprune.trace`. Never changes: cut and mask return new modules.

    Attributes:
        axes: every axis that a parameter carries, in graph order, frozen ones included.
        matrices: the weights that mask patterns apply to, in graph order.
        module: the dense model as an ``nn.Module`` with the original parameter names. It shares its tensors with the model that
            was traced: changing that model's weights changes it.
        space, parameter_dims: the dims' space, and the dims of every parameter and buffer.

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
        work: WorkCount,
        unmasked: Set[tuple[str, int]] = frozenset(),
        values: Mapping[fx.Node, Any] | None = None,
        tokens: Callable[[AxisGraph], TokenGraph] | None = None,
    ) -> None:
        self.module = module
        self.matrices = tuple(matrices)
        self._table = AxisTable(space, parameters)
        self.space = space
        self._dim_masks = DimMasks(space)
        self.parameter_dims = self._table.parameters
        self._edits = dict(edits)
        self.work = work
        self._unmasked = unmasked
        self.axes = self._table.axes
        self.dag = dag_of(module, values)
        self._branches: tuple[Branch, ...] | None = None
        self._find_tokens = tokens
        self._tokens: TokenGraph | None = None

    # -- reading -----------------------------------------------------------------------------

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Sides of sums that may be dropped as a whole, in graph order; found when first asked for."""
        if self._branches is None:
            self._branches = branches.find(self.dag)
        return self._branches

    @property
    def tokens(self) -> TokenGraph:
        """The places where tokens can be made fewer; found when first asked for."""
        if self._tokens is None:
            self._tokens = self._find_tokens(self) if self._find_tokens else TokenGraph(self, {}, (), "not looked for")
        return self._tokens

    @property
    def token_axes(self) -> tuple[TokenAxis, ...]:
        return self.tokens.axes

    @property
    def token_reason(self) -> str | None:
        return self.tokens.reason

    def dead(self, drop: Collection[str]) -> set[str]:
        """Parameters and buffers that nothing reads any more once these branches are dropped."""
        return self.dag.dead_tensors(self._sides(drop)) if drop else set()

    def dead_tokens(self, drop: Collection[str]) -> set[str]:
        return self.tokens.dead(drop) if drop else set()

    def live(self, drop: Collection[str]) -> set[str]:
        """Nodes that are still read once these branches are dropped."""
        return self.dag.live(self._sides(drop))

    def _parted(self, given: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        """What is said of axes, and what is said of tokens."""
        if all(name in self._table for name in given):
            return dict(given), {}
        tokens = {axis.name for axis in self.token_axes}
        return {n: v for n, v in given.items() if n not in tokens}, {n: v for n, v in given.items() if n in tokens}

    def _sides(self, drop: Collection[str]) -> dict[str, int]:
        return {name: self.branch(name).side for name in drop}

    def axis(self, name: str) -> Axis:
        """The axis of that name. Raises `UnknownNameError`."""
        return self._table.axis(name)

    def slices(self, axis: Axis, parameter: str, dim: int) -> IntArray:
        """The index along ``axis`` of each position of the parameter's dim, or -1; shape (size of the dim,)."""
        return self._table.slices(axis, parameter, dim)

    def shape(self, parameter: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a parameter after a cut that keeps ``counts[axis name]`` indices."""
        return self._table.shape(parameter, self._parted(counts)[0])

    def parameter_count(self, counts: Mapping[str, int], drop: Collection[str] = ()) -> int:
        """Number of parameters after such a cut, predicted without cutting."""
        dead = self.dead(drop)
        counts = self._parted(counts)[0]
        parameters = {n: p for n, p in self.module.named_parameters(remove_duplicate=False) if n not in dead}
        first: dict[int, str] = {}
        for name, parameter in parameters.items():  # of tied names the one that the graph reads knows the axes
            if id(parameter) not in first or name in self.parameter_dims:
                first[id(parameter)] = name
        traced = sum(prod(self.shape(name, counts)) for name in first.values() if name in self.parameter_dims)
        return traced + sum(parameters[name].numel() for name in first.values() if name not in self.parameter_dims)

    def macs(self, counts: Mapping[str, int], batch: int = 1, drop: Collection[str] = ()) -> int:
        """Multiply-accumulates of matrix products, convolutions and attention after such a cut, without running it.

        ``batch`` stands for every size that is known only at run time, but for a number of tokens, which is that of the example
        inputs.
        """
        counts, fewer = self._parted(counts)
        graph = self.tokens.bordered if fewer else self
        assert graph is not None  # where there are token axes
        masks = self.tokens.masks(self.tokens.alive(fewer, drop)) if fewer else {}
        numbers = {**graph._table.numbers(counts), **{number: int(mask.sum()) for number, mask in masks.items()}}
        return graph.work.count(graph.space, numbers, batch, graph.live(drop) if drop else None)

    def selected(self, keeps: Mapping[str, torch.Tensor]) -> dict[str, list[BoolArray]]:
        """The keep masks, one a dim, of every tensor that a cut changes; arguments and errors as `cut`."""
        masks = self._table.masks(self._parted(keeps)[0])
        return {
            name: [self._dim_masks.keep(dim, masks) for dim in value.dims]
            for name, value in self.parameter_dims.items()
            if self._table.touched(value, masks)
        }

    # -- changing ----------------------------------------------------------------------------

    def reordered(
        self, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]
    ) -> dict[str, list[IntArray | None]]:
        """The positions of each dim of the cut tensor in their new order, of every tensor that carries a reordered axis."""
        return self._table.reordered(self._parted(keeps)[0], orders) if orders else {}

    def reorder(self, module: fx.GraphModule, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]) -> None:
        """Put the kept indices of axes into another order, in place: what the model computes stays the same.

        Args:
            module: what `cut` made with ``keeps``.
            orders: axis name -> order of its kept indices, (kept,) int64.
        """
        state: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        state.update(module.named_buffers(remove_duplicate=False))
        done: set[int] = set()
        for name, dims in self._table.reordered(self._parted(keeps)[0], orders).items():
            if name not in state or id(state[name]) in done:
                continue
            tensor = state[name]
            done.add(id(tensor))
            new = tensor.detach()
            for position, order in enumerate(dims):
                if order is not None:
                    new = new.index_select(position, torch.from_numpy(order).to(new.device))
            tensor.data.copy_(new)

    def feeding_axis(self, matrix: Matrix) -> Axis | None:
        """The axis whose indices are, one by one, the input channels of a layer, if it may be cut."""
        for axis in self.axes:
            if axis.frozen is None and (matrix.parameter, 1 - matrix.out_dim) in axis.members:
                owner = self.slices(axis, matrix.parameter, 1 - matrix.out_dim)
                if len(owner) == axis.size and bool((owner >= 0).all()):
                    return axis
        return None

    def cut(self, keeps: Mapping[str, torch.Tensor], drop: Collection[str] = ()) -> fx.GraphModule:
        """The model with the removed indices physically gone.

        Args:
            keeps: axis name -> bool tensor (axis.size,), True = stays. At least one index must stay. For tokens
                the number that stays counts: which ones stay is decided for each input.
            drop: names of branches that go as a whole.

        Returns:
            A trainable module with the original parameter names; the dense model is not touched.

        Raises:
            UsageError: an axis or branch that is unknown, an axis that is frozen, or a mask of the wrong shape or type.
        """
        keeps, fewer = self._parted(keeps)
        masks = self._table.masks(keeps)
        if not fewer:
            return self.cut_leaves(masks, drop)
        bordered = self.tokens.bordered
        assert bordered is not None  # where there are token axes
        kept = self.tokens.alive(self.tokens.counted(fewer), drop)
        made = bordered.cut_leaves({**bordered._table.masks(keeps), **self.tokens.masks(kept)}, drop, self.tokens.finish(kept))
        made.meta |= {"free_length": False, "chooses": True}
        return made

    def cut_leaves(self, masks: Mapping[int, BoolArray], drop: Collection[str], finish: Finish | None = None) -> fx.GraphModule:
        """`cut` by masks of leaves.

        Args:
            finish: changes the cut graph: takes it, its nodes by their old names, and the size of a dim.
        """
        counts = {number: int(mask.sum()) for number, mask in masks.items()}

        def kept(dim: Dim) -> int:
            return self._dim_masks.kept(dim, counts)

        graph, new = copy_graph(self.module)
        by_name = {old.name: node for old, node in new.items()}
        for old in self.module.graph.nodes:
            for edit in self._edits.get(old.name, ()):
                edit(new[old], kept)
        dead = erase_dropped(graph, by_name, self.dag, self._sides(drop)) if drop else set()
        if finish is not None:
            finish(graph, {name: node for name, node in by_name.items() if not node._erased}, kept)
        return rebuild(self.module, graph, self.parameter_dims, lambda tensor, value: self._select(tensor, value, masks), dead)

    def mask(self, keeps: Mapping[str, torch.Tensor], drop: Collection[str] = ()) -> fx.GraphModule:
        """The model in its original shapes with the removed slices and sides zeroed: what ``cut`` must equal.

        Arguments and errors as for `cut`.
        """
        masks = self._table.masks(self._parted(keeps)[0])

        def zero(tensor: torch.Tensor, value: Value) -> torch.Tensor:
            result = tensor.detach().clone()
            for position, keep in self._table.touched(value, masks):
                if (value.parameter, position) in self._unmasked:
                    continue
                gone = torch.from_numpy(~keep).to(result.device)
                result.index_fill_(position, gone.nonzero().squeeze(1), 0)
            return result

        graph, new = copy_graph(self.module)
        by_name = {old.name: node for old, node in new.items()}
        for name, side in self._sides(drop).items():
            node = by_name[name]
            with graph.inserting_before(node):
                nothing = graph.call_function(torch.ops.aten.zeros_like.default, (node.args[side],))
            node.update_arg(side, nothing)
            if node.target in SUMS_IN_PLACE and side == 0:  # it would write into the zeros, not into the side that is gone
                node.target = torch.ops.aten.add.Tensor
        return rebuild(self.module, graph, self.parameter_dims, zero)

    def _select(self, tensor: torch.Tensor, value: Value, masks: Mapping[int, BoolArray]) -> torch.Tensor:
        result = tensor.detach()
        for position, keep in self._table.touched(value, masks):
            stays = torch.from_numpy(keep.nonzero()[0]).to(result.device)
            result = result.index_select(position, stays)
        return result.clone() if result.data_ptr() == tensor.data_ptr() else result.contiguous()
