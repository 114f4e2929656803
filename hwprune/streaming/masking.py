"""Masks for the linear layers of one block, in the order in which they run, each with the inputs that the pruned ones give it.

Attention's projections are pruned before the sums that they feed, the MLP's last layer after its first ones (SparseGPT, Frantar &
Alistarh 2023, prunes a whole block with the inputs of the dense one). Layers that read one tensor share its Gram matrix, which is
in memory alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hwprune.layers.statistics import LayerStatistics
from hwprune.layers.units import Unit, matrix_unit
from hwprune.methods import layerwise, method
from hwprune.patterns import Pattern
from hwprune.streaming.blocks import DecoderBlock
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.input_sums import NEEDS, InputSums, cross_of, statistics_of
from hwprune.structure.model_graph import Matrix


@dataclass(frozen=True, slots=True, eq=False)
class _Linear:
    """A layer that multiplies by a matrix.

    Attributes:
        name: of its weight in the block.
        transposed: the weight is (in, out), as in transformers' Conv1D.
    """

    name: str
    module: nn.Module
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        shape = tuple(self.module.get_parameter("weight").shape)
        return shape[::-1] if self.transposed else shape

    def unit(self, weight: torch.Tensor | None = None) -> Unit:
        """What is pruned: the layer's weight, or another (out, in) in its place."""
        matrix = Matrix(self.name, "linear", self.shape, 1, self.transposed)
        return matrix_unit(matrix, self.module.get_parameter("weight").detach() if weight is None else matrix.rows(weight))


class BlockMasks:
    """Masks every linear layer of a block.

    Args:
        block: is changed.
        inputs: hidden states that enter it.
        fitted, held: windows that repairs are fitted to, and windows that decide whether a repair stays.
        compensation: ``none``, ``obs`` or ``lstsq``.
        dense_inputs: hidden states that enter the block of the dense model. With them a repaired layer is fitted to what the
            dense layer makes of its own inputs, and not of those that the pruned layers before give it.
    """

    def __init__(
        self,
        block: DecoderBlock,
        inputs: HiddenStates,
        fitted: Sequence[int],
        held: Sequence[int],
        compensation: str,
        dense_inputs: HiddenStates | None = None,
    ) -> None:
        self.block, self.inputs, self.compensation = block, inputs, compensation
        self.dense_inputs = None if compensation == layerwise.NONE else dense_inputs
        self.dense_block = None if self.dense_inputs is None else copy.deepcopy(block)
        self.held, self.fitted = list(held), list(fitted)
        self._groups = self._in_order()

    @classmethod
    def can(cls, block: DecoderBlock, resolved: method.Method, compensation: str) -> bool:
        """Are all matrices of the block weights of linear layers, and does the method ask for nothing but inputs?"""
        known = {linear.name for linear in _linears(block)}
        matrices = {name for name, parameter in block.layer.named_parameters() if parameter.ndim > 1}
        return matrices <= known and set(resolved.needs) <= NEEDS and compensation in (layerwise.NONE, "obs", "lstsq")

    @torch.no_grad()
    def run(self, resolved: method.Method, pattern: Pattern, level: float | None, wanted: Callable[[str], bool]) -> list[str]:
        """Mask the layers that ``wanted`` names; returns those whose repair did not help windows that it had not seen."""
        plain = []
        for group in self._groups:
            chosen = [linear for linear in group if wanted(linear.name) and not pattern.inadmissible(linear.shape)]
            if not chosen:
                continue
            sums = self._sums(chosen[0])
            for linear in chosen:
                plain += self._mask(linear, resolved, pattern, level, sums)
        return plain

    def _mask(
        self, linear: _Linear, resolved: method.Method, pattern: Pattern, level: float | None, sums: tuple[InputSums, InputSums]
    ) -> list[str]:
        everything = statistics_of([*sums], linear.name)
        levels = [pattern.fixed_sparsity if pattern.fixed_sparsity is not None else level]
        dense = linear.unit().weights[linear.name]
        target, left_out, compensation = dense, list[str](), self.compensation
        if compensation != layerwise.NONE:
            some, others = (statistics_of([part], linear.name) for part in sums)
            hessian = others.hessian(centred=False)[0]
            cross = hessian if self.dense_block is None else cross_of([sums[1]])
            ridge = None if self.dense_block is None else _ridge(dense, some, cross_of([sums[0]]), hessian, cross)
            tried = self._solve(linear, self._target(dense, some, sums[:1], ridge), resolved, pattern, levels, some, compensation)
            new, keep = tried
            if _error(new, dense, hessian, cross) >= _error(dense * keep, dense, hessian, cross):
                compensation, left_out = layerwise.NONE, [linear.name]
            else:
                target = self._target(dense, everything, sums, ridge)
        new, _ = self._solve(linear, target, resolved, pattern, levels, everything, compensation)
        weight = linear.module.get_parameter("weight")
        weight.copy_(new.t() if linear.transposed else new)
        return left_out

    @staticmethod
    def _target(dense: torch.Tensor, seen: LayerStatistics, sums: Sequence[InputSums], ridge: float | None) -> torch.Tensor:
        """The weights that make the dense layer's outputs of the pruned layers' results, before anything goes."""
        return dense if ridge is None else _moved(dense, seen.hessian(centred=False)[0], cross_of([*sums]), ridge)

    @staticmethod
    def _solve(
        linear: _Linear,
        target: torch.Tensor,
        resolved: method.Method,
        pattern: Pattern,
        levels: Sequence[float | None],
        seen: LayerStatistics,
        compensation: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(new weights, mask), each (out, in)."""
        unit = linear.unit(target)
        (option,) = resolved.solve(unit, {linear.name: seen}, pattern, levels, compensation)
        return option.weights.get(linear.name, unit.weights[linear.name] * option.keep), option.keep

    def _in_order(self) -> list[list[_Linear]]:
        """The layers as they are called; those that read the same tensor one after the other belong together."""
        groups: list[list[_Linear]] = []
        last: list[torch.Tensor] = []

        def called(linear: _Linear, given: tuple[Any, ...]) -> None:
            if last and given[0] is last[0]:
                groups[-1].append(linear)
            elif all(linear is not other for group in groups for other in group):
                groups.append([linear])
            last[:] = [given[0]]

        handles = [
            linear.module.register_forward_pre_hook(lambda _module, given, linear=linear: called(linear, given))
            for linear in _linears(self.block)
        ]
        try:
            with torch.no_grad():
                self.block(self.inputs.read(0))
        finally:
            for handle in handles:
                handle.remove()
        return groups

    def _sums(self, linear: _Linear) -> tuple[InputSums, InputSums]:
        """Of the layer's inputs in the windows that repairs are fitted to, and in the others."""
        beside = None
        if self.dense_block is not None:
            beside = next(other for other in _linears(self.dense_block) if other.name == linear.name)
        shift: list[torch.Tensor] = []
        found: list[InputSums] = []
        for which in (self.fitted, self.held):
            sums: list[InputSums] = []
            for window in which:
                x = _input(self.block, linear, self.inputs.read(window))
                shift = shift or [x.reshape(-1, x.shape[-1]).float().mean(dim=0)]
                sums = sums or [InputSums(shift[0])]
                dense = None
                if self.dense_block is not None and self.dense_inputs is not None and beside is not None:
                    dense = _input(self.dense_block, beside, self.dense_inputs.read(window))
                sums[0].add(x, dense)
            found += sums
        return found[0], found[1]


def _input(block: DecoderBlock, linear: _Linear, hidden: torch.Tensor) -> torch.Tensor:
    """What reaches a layer; nothing behind it is computed."""

    def reached(_module: nn.Module, given: tuple[Any, ...]) -> None:
        raise _Reached(given[0])

    handle = linear.module.register_forward_pre_hook(reached)
    try:
        block(hidden)
    except _Reached as stop:
        found: torch.Tensor = stop.value
        return found
    finally:
        handle.remove()
    raise AssertionError(f"{linear.name} was called before, and is not now")


class _Reached(Exception):  # noqa: N818 - no error: the layer was reached
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value


def _linears(block: DecoderBlock) -> list[_Linear]:
    found = []
    for name, module in block.layer.named_modules():
        weight = module._parameters.get("weight")
        plain = isinstance(module, nn.Linear)
        if weight is not None and weight.ndim == 2 and (plain or type(module).__name__ == "Conv1D"):
            found.append(_Linear(f"{name}.weight", module, not plain))
    return found


RIDGES = (0.01, 0.1, 1.0)
"""Strengths, in mean squares of an input, with which new targets are held to the dense weights; held-out windows choose."""


def _ridge(
    dense: torch.Tensor, some: LayerStatistics, cross: torch.Tensor, held_hessian: torch.Tensor, held_cross: torch.Tensor
) -> float | None:
    """The strength whose target is best for windows that it has not seen; None: the dense weights are."""
    hessian = some.hessian(centred=False)[0]
    errors: dict[float | None, float] = {None: _error(dense, dense, held_hessian, held_cross)}
    for ridge in RIDGES:
        errors[ridge] = _error(_moved(dense, hessian, cross, ridge), dense, held_hessian, held_cross)
    return min(errors, key=lambda ridge: errors[ridge])


def _moved(dense: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor, ridge: float) -> torch.Tensor:
    """(out, in) that minimises |W x - V y|^2 + ridge |V - W|^2 over V, x the dense model's inputs and y the pruned one's."""
    damped = hessian + ridge * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    change: torch.Tensor = torch.linalg.solve(damped, (cross - hessian).mT @ dense.double().T).T
    return (dense.double() + change).to(dense.dtype)


def _error(new: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor) -> float:
    """Mean |V y - W x|^2 of new weights V and dense ones W, less the mean |W x|^2, which all candidates share.

    Args:
        hessian, cross: means of y y^T and x y^T.
    """
    v, w = new.double(), dense.double()
    return float((((v @ hessian) - 2 * (w @ cross)) * v).sum())
