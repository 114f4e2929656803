"""Which choice each block gets, for a budget of time on the target and limits on each phase."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwprune.language.part_choices import PARTS, Allocation, PartChoices
from hwprune.language.phase_bench import PHASES
from hwprune.language.phase_prices import Prices
from hwprune.language.response_program import Needs, best_alike, least_divergence
from hwprune.language.word_responses import Responses
from hwprune.streaming.phases import DECODE, PREFILL, Tokens

MARGIN = 0.02
"""A limit is kept by so much in prediction: prices are some per cent off."""


class Allocator:
    """Models of least divergence for a time.

    Args:
        limits: phase -> seconds, ``size`` and ``cache`` -> bytes, see `Prices`.
        uniform: all blocks are alike.
    """

    def __init__(
        self,
        choices: PartChoices,
        prices: Prices,
        tokens: Tokens,
        limits: Mapping[str, float],
        depth: int,
        *,
        uniform: bool = False,
    ) -> None:
        self.choices, self.prices, self.tokens, self.limits = choices, prices, tokens, limits
        self.depth, self.uniform = depth, uniform

    def answer_s(self, allocation: Allocation) -> float:
        """Predicted seconds of a whole answer."""
        return sum(self._weight(phase) * self.prices.predicted(phase, self.choices, allocation) for phase in PHASES)

    @property
    def dense_s(self) -> float:
        """Seconds of the dense model's answer."""
        return sum(self._weight(phase) * self.prices.dense[phase] for phase in PHASES)

    def saved(self, allocation: Allocation) -> float:
        """Share of the dense model's time that a model is predicted to save."""
        return 1 - self.answer_s(allocation) / self.dense_s

    def best(self, responses: Responses, budget: float, pairs: int, attention: float = 1.0) -> list[tuple[int, int]] | None:
        """The model of least divergence whose answer saves this share of the dense time; None: there is none.

        Args:
            pairs, attention: see `least_divergence`.
        """
        if self.uniform:
            return best_alike(responses, self._needs(budget), attention)
        return least_divergence(responses, self._needs(budget), pairs, attention)

    def most_saved(self) -> float:
        """The largest share of the dense time that any model saves, by prediction."""
        return sum(
            max(sum(self._weight(phase) * self.prices.saving(phase, one) for phase in PHASES) for one in self.choices.of(part))
            for part in PARTS
        ) * self.depth / self.dense_s  # fmt: skip

    def plain(self) -> list[list[tuple[int, int]]]:
        """What one would try without a search: the same neurons in all blocks. Nothing that is found may be worse than these."""
        found = [[(0, place)] * self.depth for place, one in enumerate(self.choices.mlp) if one.pattern not in ("", one.part)]
        return [one for one in found if self.keeps_limits(one)]

    def keeps_limits(self, allocation: Allocation) -> bool:
        """Is everything predicted to keep its limit, times with their margin?"""
        return all(self.prices.predicted(name, self.choices, allocation) <= self._limit(name) for name in self.limits)

    def _needs(self, budget: float) -> Needs:
        saved = {
            name: np.tile([self.prices.saving(name, one) for part in PARTS for one in self.choices.of(part)], self.depth)
            for name in (*PHASES, *self.limits)
        }
        rows = [sum(self._weight(phase) * saved[phase] for phase in PHASES)]
        least = [budget * self.dense_s]
        for name in self.limits:
            rows.append(saved[name])
            least.append(self.prices.dense[name] - self._limit(name))
        return Needs(np.array(rows), np.array(least))

    def _limit(self, name: str) -> float:
        return self.limits[name] * (1 - MARGIN if name in PHASES else 1)

    def _weight(self, phase: str) -> int:
        return {PREFILL: 1, DECODE: self.tokens.new}[phase]
