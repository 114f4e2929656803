"""Compensations that follow the candidate from its inputs to its outputs: sequential least squares, bias and mean/variance
correction.

A layer's target is always what the dense layer puts out for the same examples, so errors do not pile up (the idea of
Tyr-the-Pruner's error accumulation and of OBC's post-processing, `--statcorr`).
"""

from __future__ import annotations

import dataclasses
from math import ceil, prod
from typing import Any, final

import torch
from torch import fx

from hwprune.calibration.gram import MIN_ROWS, ROWS_PER_COLUMN
from hwprune.calibration.passes import full_precision
from hwprune.compensation.base import Compensation, Context
from hwprune.compensation.batchnorm import carry_over, moments
from hwprune.compensation.dense_side import DenseSide, clean_nodes, dense_side, per_batch
from hwprune.compensation.lockstep import Steps, relevant_positions, walk
from hwprune.compensation.refit import refit
from hwprune.errors import CandidateFailure
from hwprune.layers import layer as layer_table
from hwprune.layers.layer import Layer
from hwprune.layers.part import grouped
from hwprune.structure.model_graph import Matrix
from hwprune.structure.torch.analyse import WEIGHT_ARGUMENT
from hwprune.structure.torch.opaque import opaque_model
from hwprune.structure.torch.rules.table import read_argument

_BATCH_NORM = torch.ops.aten.batch_norm.default
SCALE_LIMITS = (0.5, 2.0)
"""Range of the factor of the mean/variance correction: a channel that carries next to nothing is not blown up."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A layer of the candidate beside the dense one."""

    pruned: Layer
    dense: Layer
    weight: torch.Tensor
    dense_weight: torch.Tensor
    """(kept out, in / G, *kernel)"""
    groups: torch.Tensor
    """The dense layer's groups that are left, in order."""
    keep: torch.Tensor | None


class _Walker:
    """Finds the layers of both models and what belongs together."""

    def __init__(self, module: fx.GraphModule, context: Context) -> None:
        self.module, self.context = module, context
        self.state: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self.state.update(module.named_buffers(remove_duplicate=False))
        self.dense_state: dict[str, torch.Tensor] = dict(context.dense.named_parameters(remove_duplicate=False))
        self.dense_state.update(context.dense.named_buffers(remove_duplicate=False))
        matrices = [
            _after_cut(matrix, self.state[matrix.parameter], module)
            for matrix in context.matrices
            if matrix.parameter in self.state
        ]
        pruned = layer_table.find(module, matrices)
        dense = layer_table.find(context.dense, context.matrices)
        self.pairs: dict[str, _Pair] = {}
        for name, layer in pruned.items():
            if name in dense and len(layer.nodes) == 1 and layer.nodes == dense[name].nodes:
                self.pairs[layer.nodes[0]] = self._pair(layer, dense[name])

    def _pair(self, pruned: Layer, dense: Layer) -> _Pair:
        name = pruned.name
        pruned = dataclasses.replace(pruned, batch_dim=dense.batch_dim)  # a cut graph does not know which sizes are free
        whole = dense.matrix.rows(self.dense_state[name].detach())
        out = torch.arange(whole.shape[0])
        if name in self.context.positions:
            out = self.context.positions[name][dense.matrix.out_dim]
        groups = torch.unique_consecutive(out // (whole.shape[0] // dense.matrix.groups))
        keep = self.context.masks.get(name)
        weight = pruned.matrix.rows(self.state[name])
        return _Pair(pruned, dense, weight, whole[out], groups, None if keep is None else pruned.matrix.rows(keep))

    def outputs_kept(self, name: str) -> torch.Tensor:
        """Indices of a dense vector (bias, running mean) that the candidate still has."""
        size = len(self.dense_state[name])
        positions = self.context.positions.get(name)
        return torch.arange(size) if positions is None else positions[0]

    def columns(self, pair: _Pair, pruned: list[torch.Tensor], dense: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of both inputs at the same random positions: (G, rows, kept d) and (G, rows, d)."""
        target = max(MIN_ROWS, ROWS_PER_COLUMN * (prod(pair.pruned.matrix.shape[1:]) + 1))
        total = sum(len(x) for x in pruned)
        mine, theirs = [], []
        for number, (x, y) in enumerate(zip(pruned, dense, strict=True)):
            limit = ceil(target * len(x) / total)
            allowed = relevant_positions(self.context, number).get(pair.dense.nodes[0])
            mine.append(pair.pruned.columns(x, limit, torch.Generator().manual_seed(number), allowed))
            theirs.append(pair.dense.columns(y, limit, torch.Generator().manual_seed(number), allowed)[pair.groups])
        return torch.cat(mine, dim=1).float(), torch.cat(theirs, dim=1).float()

    def move(self, pair: _Pair, shift: torch.Tensor) -> None:
        """Set the constant so that the outputs' mean is the dense one; ``shift`` is that of dense minus pruned product."""
        if pair.pruned.bias is not None and pair.dense.bias is not None:
            kept = self.outputs_kept(pair.dense.bias)
            bias = self.dense_state[pair.dense.bias].detach()[kept]
            self.state[pair.pruned.bias].data.copy_(bias + shift.to(bias.dtype))
        elif pair.pruned.running_mean is not None and pair.dense.running_mean is not None:
            kept = self.outputs_kept(pair.dense.running_mean)
            mean = self.dense_state[pair.dense.running_mean][kept]
            self.state[pair.pruned.running_mean].data.copy_(mean - shift.to(mean.dtype))

    def constant(self, pair: _Pair) -> torch.Tensor:
        """What is added to the outputs now beyond the dense model's own constant; see `move`."""
        if pair.pruned.bias is not None and pair.dense.bias is not None:
            kept = self.outputs_kept(pair.dense.bias)
            return self.state[pair.pruned.bias].detach() - self.dense_state[pair.dense.bias].detach()[kept]
        assert pair.pruned.running_mean is not None
        assert pair.dense.running_mean is not None
        kept = self.outputs_kept(pair.dense.running_mean)
        return self.dense_state[pair.dense.running_mean][kept] - self.state[pair.pruned.running_mean]

    def movable(self, pair: _Pair) -> bool:
        return (pair.pruned.bias is not None and pair.dense.bias is not None) or (
            pair.pruned.running_mean is not None and pair.dense.running_mean is not None
        )


def _after_cut(matrix: Matrix, weight: torch.Tensor, module: fx.GraphModule) -> Matrix:
    shape = tuple(matrix.rows(weight).shape)
    groups = matrix.groups
    if groups > 1:
        for node in module.graph.nodes:
            if node.target in WEIGHT_ARGUMENT and str(getattr(node.args[1], "target", "")) == matrix.parameter:
                groups = int(read_argument(node, "groups"))
    return dataclasses.replace(matrix, shape=shape, groups=groups)


def _changed(pair: _Pair, pruned: list[torch.Tensor], dense: list[torch.Tensor]) -> bool:
    """Does the layer see or compute anything else than the dense one?"""
    same = pair.weight.shape == pair.dense_weight.shape and torch.equal(pair.weight, pair.dense_weight)
    return not same or pruned[0].shape != dense[0].shape or not torch.equal(pruned[0], dense[0])


@final
class Sequential(Compensation):
    """Least squares of every layer behind a change, with the candidate's own inputs: ``min ||W x - W_dense x_dense||^2``.

    How strongly a ridge holds W near what it was, and how far W goes at all, is decided by examples that nothing was fitted to
    (see `hwprune.compensation.refit`). Batch norms on the way get the statistics of their inputs.
    """

    name = "sequential"
    description = "least squares layer after layer, with the pruned model's own inputs"

    def applies(self, module: fx.GraphModule) -> bool:
        return opaque_model(module) is None and any(node.target in WEIGHT_ARGUMENT for node in module.graph.nodes)

    @torch.no_grad()
    def apply(self, module: fx.GraphModule, context: Context) -> None:
        dense = dense_side(context)
        if not dense.batches:
            raise CandidateFailure("prune", "there are no calibration data to compensate with")
        module.eval()
        walker = _Walker(module, context)
        clean = clean_nodes(module, context.dense)
        steps = Steps(module, dense.batches)
        norm_batches = dense.norm_batches()
        with full_precision():
            while steps.at < len(steps.nodes) - 1:  # the output node computes nothing
                node = steps.nodes[steps.at]
                if node.name not in clean:
                    if node.target is _BATCH_NORM and node.name in dense.norms:
                        inputs = steps.before(node.name)
                        carry_over(
                            node, moments([inputs[number][0] for number in norm_batches]), dense.norms[node.name], module, context
                        )
                    elif node.name in walker.pairs and node.name in dense.layers:
                        pair = walker.pairs[node.name]
                        x = [arguments[pair.pruned.argument] for arguments in steps.before(node.name)]
                        _solve(walker, pair, dense, x)
                steps.step()


def _solve(walker: _Walker, pair: _Pair, dense: DenseSide, x: list[torch.Tensor]) -> None:
    kept = dense.layers[pair.pruned.nodes[0]]
    rows = kept.leading(prod(pair.pruned.matrix.shape[1:]))
    columns = [pair.pruned.columns_at(one, places).float() for one, (places, _) in zip(x, rows, strict=True)]
    wanted = [targets[pair.groups] for _, targets in rows]
    out = walker.context.positions.get(pair.dense.name)
    if out is not None:  # the outputs that are left, group by group
        whole = out[pair.dense.matrix.out_dim]
        size = pair.dense.matrix.shape[0] // pair.dense.matrix.groups
        index = (whole % size).reshape(len(pair.groups), -1).to(wanted[0].device)
        wanted = [one.gather(2, index[:, None, :].expand(-1, one.shape[1], -1)) for one in wanted]
    fitted, held = (
        (
            torch.cat(per_batch(columns, dense.held_out, held_out=flag), dim=1),
            torch.cat(per_batch(wanted, dense.held_out, held_out=flag), dim=1),
        )
        if flag in dense.held_out
        else None
        for flag in (False, True)
    )
    assert fitted is not None
    keep = None if pair.keep is None else grouped(pair.keep, len(pair.groups))
    movable = walker.movable(pair)
    old = grouped(pair.weight.detach().double(), len(pair.groups))
    constant = walker.constant(pair).double().reshape(len(pair.groups), -1).to(old.device) if movable else None
    solved, shift = refit(fitted, held, old, keep, constant)
    if not bool(torch.isfinite(solved).all()):
        raise CandidateFailure("prune", f"sequential least squares of {pair.pruned.name} is not finite")
    pair.weight.data.copy_(solved.reshape(pair.weight.shape).to(pair.weight.dtype))
    if movable:
        walker.move(pair, shift.reshape(-1).cpu())


@final
class Statistics(Compensation):
    """Bring mean (and spread) of every changed layer's outputs back to the dense ones: for networks without batch norm.

    ``bias`` moves the bias (Nagel et al. 2019, section 4.2; FLAP); ``meanvar`` also scales each output's weights (OBC's
    ``--statcorr``).
    """

    def __init__(self, name: str, *, scale: bool) -> None:
        self.name = name
        self.scale = scale
        self.description = (
            "mean and variance of every changed layer's outputs as in the dense model"
            if scale
            else "mean of every changed layer's outputs as in the dense model"
        )

    def applies(self, module: fx.GraphModule) -> bool:
        if opaque_model(module) is not None:
            return False
        return any(node.target in WEIGHT_ARGUMENT for node in module.graph.nodes)

    def apply(self, module: fx.GraphModule, context: Context) -> None:
        walker = _Walker(module, context)

        def visit(node: fx.Node, pruned: list[tuple[Any, ...]], dense: list[tuple[Any, ...]]) -> None:
            pair = walker.pairs[node.name]
            x, y = ([arguments[pair.pruned.argument] for arguments in side] for side in (pruned, dense))
            if walker.movable(pair) and _changed(pair, x, y):
                self._correct(walker, pair, x, y)

        with full_precision():
            walk(module, context, set(walker.pairs), visit)

    def _correct(self, walker: _Walker, pair: _Pair, x: list[torch.Tensor], y: list[torch.Tensor]) -> None:
        pruned, dense = walker.columns(pair, x, y)
        g = len(pruned)
        w = grouped(pair.weight.detach().float(), g)
        mine, wanted = pruned @ w.mT, dense @ grouped(pair.dense_weight.float(), g).mT  # (G, rows, out / G)
        if self.scale:
            spread, wanted_spread = mine.std(dim=1), wanted.std(dim=1)
            factor = (wanted_spread / spread.clamp(min=1e-12)).clamp(*SCALE_LIMITS)
            factor = torch.where(spread > 1e-6 * wanted_spread, factor, torch.ones_like(factor))
            w = w * factor[:, :, None]
            pair.weight.data.copy_(w.reshape(pair.weight.shape).to(pair.weight.dtype))
            mine = mine * factor[:, None]
        walker.move(pair, (wanted - mine).mean(dim=1).reshape(-1).cpu())
