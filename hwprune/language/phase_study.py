"""The search: knapsacks over measured savings and damages, whose weights Optuna learns from whole models.

Damages of single choices don't add up: blocks make up for each other, or make errors of others worse. So each trial bends them
(by part, by depth, by their spread), takes the optimum of a knapsack for a budget of time, and runs that whole model: its
divergence on held-out text, and both phases on the runtime. (SPDY, Frantar & Alistarh 2022, arXiv 2201.13096, searches a weight
for each layer; with some thirty trials a few weights are what can be learned.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from hwprune.errors import CandidateFailure, UsageError
from hwprune.language.part_choices import PARTS, Allocation, PartChoices
from hwprune.language.phase_prices import PHASES, Prices
from hwprune.language.trial_scores import Score
from hwprune.latency.paired import Paired
from hwprune.searching.sampling.exact_program import solve_limits
from hwprune.streaming.phases import DECODE, PREFILL, Tokens
from hwprune.streaming.sublayers import ATTENTION

FILE = "study.db"
NAME = "hwprune-language"
FIRST = 10
"""Trials with damages as they are, at budgets spread over the range."""
LEAST, MOST = 0.05, 0.6
"""Shares of the dense time that budgets save."""
FIXED = "fixed"
"""Attribute of a trial that was not chosen by a knapsack."""
MOST_PLAIN = 4
FEWEST_SEEN = 4
"""Trials from which on measured models correct the table of savings."""
RUINED, STEPS = 1.5, 12
"""Nats a token beyond which nobody wants a model, and budgets that are tried to find where that begins."""
IMPOSSIBLE = 1e9
"""Damage of what is not finite."""
MARGIN = 0.02
"""A limit is kept by so much in prediction: prices are some per cent off."""

Measure = Callable[[Allocation], Mapping[str, Paired]]


@dataclass(frozen=True, slots=True)
class Bend:
    """How a trial bends the damages.

    Attributes:
        attention: factor of attention's damages.
        tilt: damages of the last block over those of the first one, as a power of e.
        spread: power that they are taken to.
    """

    attention: float = 1.0
    tilt: float = 0.0
    spread: float = 1.0


class Allocator:
    """Optima of the knapsack.

    Args:
        damages: see `part_damages`.
        limits: phase -> seconds.
        uniform: all blocks are alike.
    """

    def __init__(
        self,
        choices: PartChoices,
        damages: Sequence[Mapping[str, float]],
        prices: Prices,
        tokens: Tokens,
        limits: Mapping[str, float],
        *,
        uniform: bool = False,
    ) -> None:
        self.choices, self.damages, self.prices, self.tokens = choices, damages, prices, tokens
        self.limits, self.uniform = limits, uniform

    def answer_s(self, allocation: Allocation) -> float:
        """Predicted seconds of a whole answer."""
        return sum(self._weight(phase) * self.prices.predicted(phase, self.choices, allocation) for phase in PHASES)

    @property
    def dense_s(self) -> float:
        """Seconds of the dense model's answer."""
        return sum(self._weight(phase) * self.prices.dense[phase] for phase in PHASES)

    def best(self, budget: float, bend: Bend) -> list[tuple[int, int]] | None:
        """The allocation of least damage whose answer saves this share of the dense time; None: there is none."""
        if self.uniform:
            return self._best_uniform(budget, bend)
        errors: list[Any] = []
        uses: list[list[Any]] = [[] for _ in range(1 + len(self.limits))]
        for index in range(len(self.damages)):
            for part in PARTS:
                errors.append(self._errors(index, part, bend))
                saved = {phase: np.array([self.prices.saving(phase, one) for one in self.choices.of(part)]) for phase in PHASES}
                uses[0].append(-sum(self._weight(phase) * saved[phase] for phase in PHASES))
                for row, phase in zip(uses[1:], self.limits, strict=True):
                    row.append(-saved[phase])
        limits = [(1 - MARGIN) * limit - self.prices.dense[phase] for phase, limit in self.limits.items()]
        most = [-budget * self.dense_s, *limits]
        found = solve_limits(errors, uses, most)
        return None if found is None else list(zip(found[::2], found[1::2], strict=True))

    def most_saved(self) -> float:
        """The largest share of the dense time that any allocation saves, by prediction."""
        return sum(
            max(sum(self._weight(phase) * self.prices.saving(phase, one) for phase in PHASES) for one in self.choices.of(part))
            for part in PARTS
        ) * len(self.damages) / self.dense_s  # fmt: skip

    def plain(self) -> list[list[tuple[int, int]]]:
        """What one would try without a search: the same neurons in all blocks. Nothing that is found may be worse than these."""
        depth = len(self.damages)
        found = [[(0, place)] * depth for place, one in enumerate(self.choices.mlp) if one.pattern not in ("", one.part)]
        return [one for one in found[:MOST_PLAIN] if self.keeps_limits(one)]

    def most_useful(self, most: float) -> float:
        """The largest budget up to ``most`` whose best model is not yet ruined, by the sum of its damages."""
        for budget in np.linspace(most, LEAST, STEPS):
            allocation = self.best(float(budget), Bend())
            if allocation is not None and self.damage(allocation) <= RUINED:
                return float(budget)
        return most

    def damage(self, allocation: Allocation) -> float:
        """The sum of the choices' own damages."""
        return sum(
            float(self._errors(index, part, Bend())[place])
            for index, places in enumerate(allocation)
            for part, place in zip(PARTS, places, strict=True)
        )

    def keeps_limits(self, allocation: Allocation) -> bool:
        """Is every phase predicted to keep its limit, with the margin?"""
        return all(
            self.prices.predicted(phase, self.choices, allocation) <= (1 - MARGIN) * limit for phase, limit in self.limits.items()
        )

    def _weight(self, phase: str) -> int:
        return {PREFILL: 1, DECODE: self.tokens.new}[phase]

    def _errors(self, index: int, part: str, bend: Bend) -> Any:
        depth = max(len(self.damages) - 1, 1)
        factor = math.exp(bend.tilt * (index / depth - 0.5)) * (bend.attention if part == ATTENTION else 1.0)
        found = [0.0]
        for choice in self.choices.of(part)[1:]:
            damage = self.damages[index][choice.name]
            # More that goes never costs less: a chance gain is no reason to cut more.
            found.append(max(found[-1], factor * max(damage, 1e-9) ** bend.spread if math.isfinite(damage) else IMPOSSIBLE))
        return np.array(found)

    def _best_uniform(self, budget: float, bend: Bend) -> list[tuple[int, int]] | None:
        depth, best, least = len(self.damages), None, math.inf
        for places in product(range(len(self.choices.attention)), range(len(self.choices.mlp))):
            allocation = [places] * depth
            if self.answer_s(allocation) > (1 - budget) * self.dense_s or not self.keeps_limits(allocation):
                continue
            both = list(zip(PARTS, places, strict=True))
            error = sum(float(self._errors(index, part, bend)[place]) for index in range(depth) for part, place in both)
            if error < least:
                best, least = allocation, error
        return best


class PhaseStudy:
    """Trials in an Optuna study: least divergence, largest measured speedup of the answer.

    Args:
        run: folder for `FILE`.
        score, measure: what a trial does with its allocation.
    """

    def __init__(
        self, run: Path, allocator: Allocator, score: Callable[[Allocation], Score], measure: Measure, seed: int
    ) -> None:
        self._allocator, self._score, self._measure = allocator, score, measure
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name=NAME, storage=f"sqlite:///{run / FILE}", directions=["minimize", "maximize"], load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=FIRST, constant_liar=False),
        )  # fmt: skip
        most = allocator.most_useful(min(MOST, 0.95 * allocator.most_saved()))
        if most <= LEAST:
            raise UsageError("nothing that can be cut from this model saves 5 % of its time on this target")
        self._most = most
        if not self.study.trials:
            plain = {"attention": 1.0, "tilt": 0.0, "spread": 1.0}
            for allocation in allocator.plain():
                saved = 1 - allocator.answer_s(allocation) / allocator.dense_s
                self.study.enqueue_trial(
                    plain | {"budget": min(max(saved, LEAST), most)}, user_attrs={FIXED: json.dumps(allocation)}
                )
            for budget in np.linspace(LEAST, most, FIRST + 1)[1:]:
                self.study.enqueue_trial(plain | {"budget": float(budget)})

    def run(self, trials: int, told: Callable[[int, int, str], None]) -> None:
        """Run until there are so many finished trials; a trial that a kill has ended is asked for anew."""
        for one in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            kept = {key: value for key, value in one.user_attrs.items() if key == FIXED}
            self.study.enqueue_trial(one.params, user_attrs=kept)
            self.study.tell(one.number, state=optuna.trial.TrialState.FAIL)
        while (done := len(self.finished())) < trials:
            told(done, trials, self._best_text())
            self._learn_prices()
            trial = self.study.ask()
            bend = Bend(
                trial.suggest_float("attention", 0.25, 4.0, log=True), trial.suggest_float("tilt", -3.0, 3.0),
                trial.suggest_float("spread", 0.5, 1.5),
            )  # fmt: skip
            self._one(trial, trial.suggest_float("budget", LEAST, self._most), bend)

    def _one(self, trial: optuna.Trial, budget: float, bend: Bend) -> None:
        fixed = trial.user_attrs.get(FIXED)
        allocation = self._allocator.best(budget, bend) if fixed is None else [(a, b) for a, b in json.loads(fixed)]
        if allocation is None:
            trial.set_user_attr("failure", "no allocation keeps the budget and the limits")
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        text = json.dumps(allocation)
        for other in self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            if other.user_attrs["allocation"] == text:  # the same model again: its numbers are known
                for key, value in other.user_attrs.items():
                    if key != FIXED:
                        trial.set_user_attr(key, value)
                self.study.tell(trial, other.values)
                return
        trial.set_user_attr("allocation", text)
        try:
            score, found = self._score(allocation), self._measure(allocation)
        except CandidateFailure as failure:
            trial.set_user_attr("failure", failure.reason)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        tokens, allocator = self._allocator.tokens, self._allocator
        weights = {PREFILL: 1, DECODE: tokens.new}
        answer = sum(weights[phase] * found[phase].latency.value for phase in PHASES)
        dense = sum(weights[phase] * found[phase].latency.value * found[phase].ratio for phase in PHASES)
        predicted, added_up = (
            {p: prices.dense[p] / prices.predicted(p, allocator.choices, allocation) for p in PHASES}
            for prices in (allocator.prices, replace(allocator.prices, scale={}))
        )
        ratios = {phase: paired.speedup for phase, paired in found.items()}
        trial.set_user_attr("score", asdict(score))
        trial.set_user_attr("speedups", {phase: [one.value, one.ci_low, one.ci_high] for phase, one in ratios.items()})
        trial.set_user_attr("predicted", predicted)
        trial.set_user_attr("added_up", added_up)
        self.study.tell(trial, [score.divergence if math.isfinite(score.divergence) else IMPOSSIBLE, dense / answer])

    def _learn_prices(self) -> None:
        """Let whole models say how far their choices' savings add up."""
        complete = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        seen: dict[str, list[tuple[float, float]]] = {phase: [] for phase in PHASES}
        for one in complete:
            for phase in PHASES:
                told = 1 - 1 / one.user_attrs.get("added_up", one.user_attrs["predicted"])[phase]
                if told > LEAST:
                    seen[phase].append((1 - 1 / one.user_attrs["speedups"][phase][0], told))
        if len(complete) >= FEWEST_SEEN:
            self._allocator.prices = self._allocator.prices.learned(seen)

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that have ended, failed ones included."""
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        return self.study.get_trials(deepcopy=False, states=ended)

    def front(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that no other beats in both, measured within the limits, fastest last; of equal models the first."""
        known: dict[str, optuna.trial.FrozenTrial] = {}
        dense, limits = self._allocator.prices.dense, self._allocator.limits
        for one in self.study.best_trials:
            speedups = one.user_attrs["speedups"]
            if all(dense[phase] / speedups[phase][0] <= limit for phase, limit in limits.items()):
                known.setdefault(one.user_attrs["allocation"], one)
        return sorted(known.values(), key=lambda one: one.values[1])

    def _best_text(self) -> str:
        front = self.front()
        return "" if not front else f"{len(front)} on the front, up to {front[-1].values[1]:.2f}x"
