"""Masks for the linear layers of one block, in the order in which they run, each with the inputs that the pruned ones give it.

Attention's projections are pruned before the sums that they feed, the MLP's last layer after its first ones (SparseGPT, Frantar &
Alistarh 2023, prunes a whole block with the inputs of the dense one). Layers that read one tensor share its Gram matrix, which is
in memory alone. A repaired layer aims at what the dense one makes of the dense model's inputs (see `targets`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hwprune.layers.statistics import LayerStatistics
from hwprune.methods import layerwise, method
from hwprune.patterns import Pattern
from hwprune.streaming import targets
from hwprune.streaming.block_layers import BlockLinear, in_order, linears
from hwprune.streaming.blocks import DecoderBlock
from hwprune.streaming.input_sums import NEEDS, BlockInputs, InputSums, cross_of, statistics_of

REPAIRS = ("obs", "lstsq")
"""Compensations that are made here."""


class BlockMasks:
    """Masks every linear layer of a block.

    Args:
        inputs: what enters the block, which is changed.
        compensation: ``none``, ``obs`` or ``lstsq``.
    """

    def __init__(self, inputs: BlockInputs, compensation: str) -> None:
        self.inputs, self.compensation = inputs, compensation
        self.groups = in_order(inputs.block, inputs.entering.read(0))

    @classmethod
    def can(cls, block: DecoderBlock, resolved: method.Method, compensation: str) -> bool:
        """Are all matrices of the block weights of linear layers, and does the method ask for nothing but inputs?"""
        known = {linear.name for linear in linears(block)}
        matrices = {name for name, parameter in block.layer.named_parameters() if parameter.ndim > 1}
        return matrices <= known and set(resolved.needs) <= NEEDS and compensation in (layerwise.NONE, *REPAIRS)

    @torch.no_grad()
    def run(self, resolved: method.Method, pattern: Pattern, level: float | None, wanted: Callable[[str], bool]) -> list[str]:
        """Mask the layers that ``wanted`` names; returns those whose repair did not help windows that it had not seen."""
        plain = []
        products = self.compensation != layerwise.NONE or bool({"gram", "covariance"} & set(resolved.needs))
        for group in self.groups:
            chosen = [linear for linear in group if wanted(linear.name) and not pattern.inadmissible(linear.weight.shape)]
            if not chosen:
                continue
            sums = self.inputs.sums(chosen[0], products=products)
            for linear in chosen:
                if not self._mask(linear, resolved, pattern, level, sums):
                    plain.append(linear.name)
        return plain

    def _mask(
        self,
        linear: BlockLinear,
        resolved: method.Method,
        pattern: Pattern,
        level: float | None,
        sums: tuple[InputSums, InputSums],
    ) -> bool:
        """Was it repaired, if it was to be?"""
        everything, dense = statistics_of([*sums], linear.name), linear.weight
        level = pattern.fixed_sparsity if pattern.fixed_sparsity is not None else level

        def solve(target: torch.Tensor, seen: LayerStatistics, compensation: str) -> tuple[torch.Tensor, torch.Tensor]:
            unit = linear.unit(target)
            (option,) = resolved.solve(unit, {linear.name: seen}, pattern, [level], compensation)
            return option.weights.get(linear.name, unit.weights[linear.name] * option.keep), option.keep

        if self.compensation == layerwise.NONE:
            linear.write(solve(dense, everything, layerwise.NONE)[0])
            return True
        some = statistics_of([sums[0]], linear.name)
        fitted, held, whole = (self._moments(part, linear.name) for part in ([sums[0]], [sums[1]], [*sums]))
        ridge = targets.best_ridge(dense, dense, fitted, held) if self.inputs.beside else None
        new, keep = solve(targets.moved(dense, dense, *fitted, ridge), some, self.compensation)
        helps = targets.error(new, dense, *held) < targets.error(dense * keep, dense, *held)
        target = targets.moved(dense, dense, *whole, ridge) if helps else dense
        linear.write(solve(target, everything, self.compensation if helps else layerwise.NONE)[0])
        return helps

    def _moments(self, sums: list[InputSums], name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of y y^T and x y^T; without a dense stream x is y."""
        hessian = statistics_of(sums, name).hessian(centred=False)[0]
        return hessian, cross_of(sums) if self.inputs.beside else hessian
