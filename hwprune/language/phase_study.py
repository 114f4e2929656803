"""The search: near measured models, the best of each budget of time; Optuna learns how far from them it pays to go.

What cuts cost depends on what else is cut. So models of the front are looked at anew (`word_responses`): plain ones first,
later the best that were found. Each trial takes such a model, the least divergence near it for a budget of time, and runs that
whole model: its divergence on held-out text, and both phases on the runtime. (SPDY, Frantar & Alistarh 2022, arXiv 2201.13096,
searches factors of damages that are measured once, in the dense model; EvoPress, Sieberling et al. 2024, arXiv 2410.14649,
shows that these don't add up, and tries exchanges blindly.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from hwprune.errors import CandidateFailure, UsageError
from hwprune.language.allocator import Allocator
from hwprune.language.part_choices import Allocation
from hwprune.language.phase_bench import PHASES
from hwprune.language.phase_prices import Prices
from hwprune.language.trial_scores import Score
from hwprune.language.word_responses import Responses
from hwprune.latency.paired import Paired
from hwprune.streaming.phases import DECODE, PREFILL

FILE = "study.db"
NAME = "hwprune-language"
FIRST = 10
"""Trials at budgets spread over the range."""
LEAST, MOST = 0.05, 0.6
"""Shares of the dense time that budgets save."""
FIXED, RANGE, LOOKED = "fixed", "most", "looked"
"""Attributes: of a trial that was chosen without a budget; of the study, the largest budget, and the models looked at."""
RUINED, STEPS = 1.5, 12
"""Nats a token beyond which nobody wants a model, and budgets that are tried to find where that begins."""
IMPOSSIBLE = 1e9
"""Divergence of what is not finite."""
REGIONS, MOST_ROUNDS, TRIALS_A_ROUND = 4, 3, 12
"""Budgets near which models are looked at, how often at most, and trials between."""
PAIRS, MOST_PAIRS = 8, 40
"""Exchanges: of first trials, and at most."""
FEWEST_POOLED = 8
"""Trials from which on all together say more of one's time than its own measurement."""
ALIKE = 0.02
"""Logarithm of time within which two looked-at models are equally near; the later one is taken."""

NOTHING = "nothing that can be cut from this model saves 5 % of its time on this target"
Measure = Callable[[Allocation], Mapping[str, Paired]]
Respond = Callable[[Allocation, int], Responses]


@dataclass(frozen=True, slots=True)
class FrontTrial:
    """A trial of the front.

    Attributes:
        values: nats a token from dense, and the estimated speedup of the answer.
        user_attrs: ``allocation``, ``score`` and what else the trial tells.
    """

    number: int
    values: tuple[float, float]
    user_attrs: Mapping[str, Any]


class PhaseStudy:
    """Trials in an Optuna study: least divergence, largest measured speedup of the answer.

    Args:
        run: folder for `FILE`.
        score, measure: what a trial does with its allocation.
        ruined: nats a token beyond which nobody wants a model.
        respond: looks at a model, on a draw of that number; see `Responder.near`.
    """

    def __init__(
        self,
        run: Path,
        allocator: Allocator,
        score: Callable[[Allocation], Score],
        measure: Measure,
        respond: Respond,
        seed: int,
        ruined: float = RUINED,
    ) -> None:
        self._allocator, self._score, self._measure, self._respond = allocator, score, measure, respond
        self._table, self._ruined = allocator.prices, ruined
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name=NAME, storage=f"sqlite:///{run / FILE}", directions=["minimize", "maximize"], load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=FIRST, constant_liar=False),
        )  # fmt: skip
        if allocator.most_saved() <= LEAST:
            raise UsageError(NOTHING)
        if RANGE not in self.study.user_attrs:
            self.study.set_user_attr(RANGE, self._most_useful(min(MOST, 0.95 * allocator.most_saved())))
        self._most = float(self.study.user_attrs[RANGE])
        if self._most <= LEAST:
            raise UsageError(NOTHING)
        self._near = [self._respond(one, draw) for one, draw in self.study.user_attrs.get(LOOKED, [])]
        self._plain = [one for one in allocator.plain() if allocator.saved(one) <= self._most]
        if not self.study.trials:
            usual = {"attention": 1.0, "pairs": PAIRS}
            for allocation in self._plain:
                budget = min(max(allocator.saved(allocation), LEAST), self._most)
                self.study.enqueue_trial(usual | {"budget": budget}, user_attrs={FIXED: json.dumps(allocation)})
            for budget in np.linspace(LEAST, self._most, FIRST + 1)[1:]:
                self.study.enqueue_trial(usual | {"budget": float(budget)})

    def run(self, trials: int, told: Callable[[int, int, str], None]) -> None:
        """Run until there are so many finished trials; a trial that a kill has ended is asked for anew."""
        for one in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            kept = {key: value for key, value in one.user_attrs.items() if key == FIXED}
            self.study.enqueue_trial(one.params, user_attrs=kept)
            self.study.tell(one.number, state=optuna.trial.TrialState.FAIL)
        while (done := len(self.finished())) < trials:
            told(done, trials, self._best_text())
            self._allocator.prices = self._learned()
            self._look(done, trials)
            trial = self.study.ask()
            self._one(
                trial, trial.suggest_float("budget", LEAST, self._most), trial.suggest_int("pairs", 1, MOST_PAIRS, log=True),
                trial.suggest_float("attention", 0.5, 2.0, log=True),
            )  # fmt: skip

    def _most_useful(self, most: float) -> float:
        """The largest budget up to ``most`` whose models are not yet ruined: plain ones, or those expected near the dense one."""
        before = (0.0, 0.0)
        for allocation in self._allocator.plain():
            now = (self._allocator.saved(allocation), min(self._score(allocation).divergence, IMPOSSIBLE))
            if now[1] > self._ruined:
                part = (self._ruined - before[1]) / (now[1] - before[1])
                before = (before[0] + part * (now[0] - before[0]), self._ruined)
                break
            before = now
        if before[0] > LEAST:  # where none of them is ruined, as much further as their divergence leaves room
            return min(most, before[0] * max(self._ruined / max(before[1], 1e-9), 1.0))
        dense = self._respond([(0, 0)] * self._allocator.depth, 0)
        for budget in np.linspace(most, LEAST, STEPS):
            found = self._allocator.best(dense, float(budget), 0)
            if found is not None and dense.expected(found) <= self._ruined:
                return float(budget)
        # All are: what is least ruined of what keeps the limits, so that its user sees it.
        found = self._allocator.best(dense, LEAST, 0)
        return LEAST if found is None else min(most, max(1.3 * self._allocator.saved(found), 1.3 * LEAST))

    def _look(self, done: int, trials: int) -> None:
        """Look at a model near each of some budgets: after the plain ones, and again as better ones are found."""
        first, looked = len(self._plain), list(self.study.user_attrs.get(LOOKED, []))
        rounds = min(max((trials - first) // TRIALS_A_ROUND, 1), MOST_ROUNDS)
        due = sum(done >= first + (trials - first) * number // rounds for number in range(rounds))
        while len(looked) < due * REGIONS:
            number = len(looked)
            width = (self._most - LEAST) / REGIONS
            base = self._base(LEAST + width * (number % REGIONS + 0.5), width / 2)
            # Two budgets may have the same model next to them: once a round is enough.
            same = [other[1] for other in looked if other[0] == base and other[1] // REGIONS == number // REGIONS]
            draw = same[0] if same else number
            self._near.append(self._respond([(a, b) for a, b in base], draw))
            looked.append([base, draw])
            self.study.set_user_attr(LOOKED, looked)

    def _base(self, budget: float, apart: float) -> list[list[int]]:
        """The model of the front next to a budget; or one that the known ones lead to, where none is near."""
        front = [(json.loads(one.user_attrs["allocation"]), one) for one in self.front()]
        near = sorted((abs(self._allocator.saved(allocation) - budget), place) for place, (allocation, _) in enumerate(front))
        if near and near[0][0] <= apart:
            return front[near[0][1]][0]  # type: ignore[no-any-return]
        if not self._near:
            self._near.append(self._respond([(0, 0)] * self._allocator.depth, 0))
        found = self._allocator.best(self._nearest(budget), budget, PAIRS)
        return [list(places) for places in found or self._nearest(budget).base]

    def _nearest(self, budget: float) -> Responses:
        """The looked-at model whose time is next to a budget's."""
        away = [abs(math.log((1 - budget) / (1 - self._allocator.saved(one.base)))) for one in self._near]
        return [one for one, distance in zip(self._near, away, strict=True) if distance <= min(away) + ALIKE][-1]

    def _one(self, trial: optuna.Trial, budget: float, pairs: int, attention: float) -> None:
        fixed = trial.user_attrs.get(FIXED)
        if fixed is None:
            near = self._nearest(budget)
            allocation = self._allocator.best(near, budget, pairs, attention)
            if allocation is not None:
                trial.set_user_attr("expected", near.expected(allocation))
        else:
            allocation = [(a, b) for a, b in json.loads(fixed)]
        if allocation is None:
            trial.set_user_attr("failure", "no allocation keeps the budget and the limits")
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        text = json.dumps(allocation)
        for other in self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            if other.user_attrs["allocation"] == text:  # the same model again: its numbers are known
                for key, value in other.user_attrs.items():
                    if key not in (FIXED, "expected"):
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
            for prices in (allocator.prices, self._table)
        )
        ratios = {phase: paired.speedup for phase, paired in found.items()}
        trial.set_user_attr("score", asdict(score))
        trial.set_user_attr("speedups", {phase: [one.value, one.ci_low, one.ci_high] for phase, one in ratios.items()})
        trial.set_user_attr("predicted", predicted)
        trial.set_user_attr("added_up", added_up)
        self.study.tell(trial, [score.divergence if math.isfinite(score.divergence) else IMPOSSIBLE, dense / answer])

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that have ended, failed ones included."""
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        return self.study.get_trials(deepcopy=False, states=ended)

    def estimates(self) -> dict[int, dict[str, float]]:
        """Trial -> phase -> speedup, drawn from what was measured towards what its choices add up to, as far as that is truer.

        A front takes models that look fast, and so those that came out fast by chance: one of SmolLM2's was measured at 1.11x by
        itself in a search, where all others together say 1.07x, and six fresh processes 1.06x.
        """
        complete = self._complete()
        measured = {one.number: one.user_attrs["speedups"] for one in complete}
        found = {number: {phase: speedups[phase][0] for phase in PHASES} for number, speedups in measured.items()}
        if len(complete) < FEWEST_POOLED:
            return found
        table = self._learned()
        for phase in PHASES:
            told = {one.number: table.dense[phase] / self._seconds(table, phase, one) for one in complete}
            apart = {number: math.log(measured[number][phase][0] / told[number]) for number in told}
            halves = [math.log(speedups[phase][2] / speedups[phase][1]) / (2 * 1.96) for speedups in measured.values()]
            chance = float(np.median(np.square(halves)))
            model = max(float(np.mean(np.square(list(apart.values())))) - chance, 0.0)
            weight = model / (model + chance) if model + chance > 0 else 1.0
            for number, value in told.items():
                found[number][phase] = value * math.exp(weight * apart[number])
        return found

    def front(self) -> list[FrontTrial]:
        """Trials that no other beats in both, by `estimates`, within the limits; fastest last; of equal models the first."""
        dense, limits, weights = (
            self._allocator.prices.dense,
            self._allocator.limits,
            {PREFILL: 1, DECODE: self._allocator.tokens.new},
        )
        estimates, known = self.estimates(), dict[str, FrontTrial]()
        for one in self._complete():
            speedups = estimates[one.number]
            if all(dense[phase] / speedups[phase] <= limits[phase] for phase in PHASES if phase in limits):
                whole = sum(weights[phase] * dense[phase] for phase in PHASES)
                answer = sum(weights[phase] * dense[phase] / speedups[phase] for phase in PHASES)
                found = FrontTrial(one.number, (one.values[0], whole / answer), one.user_attrs)
                known.setdefault(one.user_attrs["allocation"], found)
        front: list[FrontTrial] = []
        for trial in sorted(known.values(), key=lambda one: (-one.values[1], one.values[0])):
            if not front or trial.values[0] < front[-1].values[0]:
                front.append(trial)
        return front[::-1]

    def _complete(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    def _learned(self) -> Prices:
        """The table, corrected by all whole models."""
        seen = {one.user_attrs["allocation"]: {p: one.user_attrs["speedups"][p][0] for p in PHASES} for one in self._complete()}
        return self._table.learned(self._allocator.choices, [(json.loads(text), speedups) for text, speedups in seen.items()])

    def _seconds(self, table: Prices, phase: str, one: optuna.trial.FrozenTrial) -> float:
        return table.predicted(phase, self._allocator.choices, json.loads(one.user_attrs["allocation"]))

    def _best_text(self) -> str:
        front = self.front()
        return "" if not front else f"{len(front)} on the front, up to {front[-1].values[1]:.2f}x"
