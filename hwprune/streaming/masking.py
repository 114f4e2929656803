"""Masks for the linear layers of one block, in the order in which they run, each with the inputs that the pruned ones give it.

Attention's projections are pruned before the sums that they feed, the MLP's last layer after its first ones (SparseGPT, Frantar &
Alistarh 2023, prunes a whole block with the inputs of the dense one). Layers that read one tensor share its Gram matrix, which is
in memory alone.
"""

from __future__ import annotations

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
from hwprune.streaming.input_sums import NEEDS, InputSums, statistics_of
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

    def unit(self) -> Unit:
        """What is pruned."""
        matrix = Matrix(self.name, "linear", self.shape, 1, self.transposed)
        return matrix_unit(matrix, self.module.get_parameter("weight").detach())


class BlockMasks:
    """Masks every linear layer of a block.

    Args:
        block: is changed.
        inputs: hidden states that enter it.
        fitted, held: windows that repairs are fitted to, and windows that decide whether a repair stays.
        compensation: ``none``, ``obs`` or ``lstsq``.
    """

    def __init__(
        self, block: DecoderBlock, inputs: HiddenStates, fitted: Sequence[int], held: Sequence[int], compensation: str
    ) -> None:
        self.block, self.inputs, self.compensation = block, inputs, compensation
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
            fitted, held = self._sums(chosen[0])
            everything = statistics_of([fitted, held], chosen[0].name)
            some, others = (statistics_of([sums], chosen[0].name) for sums in (fitted, held))
            for linear in chosen:
                plain += self._mask(linear, resolved, pattern, level, (everything, some, others))
        return plain

    def _mask(
        self,
        linear: _Linear,
        resolved: method.Method,
        pattern: Pattern,
        level: float | None,
        seen: tuple[LayerStatistics, LayerStatistics, LayerStatistics],
    ) -> list[str]:
        everything, some, others = seen
        unit, levels = linear.unit(), [pattern.fixed_sparsity if pattern.fixed_sparsity is not None else level]
        dense = unit.weights[linear.name]
        left_out: list[str] = []
        compensation = self.compensation
        if compensation != layerwise.NONE:
            (tried,) = resolved.solve(unit, {linear.name: some}, pattern, levels, compensation)
            hessian = others.hessian(centred=False)[0]
            repaired = _error(dense - tried.weights[linear.name], hessian)
            if repaired >= _error(dense * ~tried.keep, hessian):
                compensation = layerwise.NONE
                left_out = [linear.name]
        (option,) = resolved.solve(unit, {linear.name: everything}, pattern, levels, compensation)
        new = option.weights.get(linear.name, dense * option.keep)
        weight = linear.module.get_parameter("weight")
        weight.copy_(new.t() if linear.transposed else new)
        return left_out

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
        shift: list[torch.Tensor] = []
        found: list[InputSums] = []
        for which in (self.fitted, self.held):
            sums: list[InputSums] = []
            for window in which:
                x = self._input(linear, window)
                shift = shift or [x.reshape(-1, x.shape[-1]).float().mean(dim=0)]
                sums = sums or [InputSums(shift[0])]
                sums[0].add(x)
            found += sums
        return found[0], found[1]

    def _input(self, linear: _Linear, window: int) -> torch.Tensor:
        """What reaches a layer; nothing behind it is computed."""

        def reached(_module: nn.Module, given: tuple[Any, ...]) -> None:
            raise _Reached(given[0])

        handle = linear.module.register_forward_pre_hook(reached)
        try:
            self.block(self.inputs.read(window))
        except _Reached as stop:
            return stop.value
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


def _error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    """Mean squared change of a layer's outputs."""
    moved = change.double()
    return float(((moved @ hessian) * moved).sum())
