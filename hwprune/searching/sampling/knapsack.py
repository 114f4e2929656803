"""The knapsack sampler: an Optuna sampler that proposes optima of a knapsack over measured time and predicted divergence.

Every choice has a price (share of the dense time that it saves, from a table) and a prior error (what it does to the outputs,
to second order). A proposal is the optimum of a multiple-choice knapsack for some budget of time, under what the finished
trials have taught about prices and errors, and is chosen for the hypervolume that it is expected to add. What does not
add up (branches, neighbours, errors that cancel) is looked for around the front, a few options at a time.

Everything is rebuilt from the study at each proposal, so any storage and any number of processes work; the draws of a trial
follow from the seed and from how many proposals came before it, so that a kill changes none of the later ones.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hwprune.searching.sampling.allocation import Allocation
from hwprune.searching.sampling.dominance import undominated
from hwprune.searching.sampling.drop_model import DropModel, improvement
from hwprune.searching.sampling.error_model import TRUSTED, ErrorModel
from hwprune.searching.sampling.exact_program import solve_limits
from hwprune.searching.sampling.history import History, nan_if_none, planned_parameters
from hwprune.searching.sampling.posterior import SAMPLES
from hwprune.searching.sampling.problem import Array, Item, Limits, item_couplings, response_gram
from hwprune.searching.sampling.proposals import (
    BUDGETS,
    DRAWS,
    MOVES,
    PATIENCE,
    PRIOR_SUCCESSES,
    PRIOR_TRIES,
    RADIUS,
    REWARD,
    SWEEP,
)
from hwprune.searching.sampling.ratio_model import RatioModel
from hwprune.searching.study.attributes import DIVERGENCE, DIVERGENCE_WEIGHT, DUPLICATE, PROPOSAL, REMEASURED, SAVED, TOLD


@final
class KnapsackSampler(optuna.samplers.BaseSampler):
    """Proposes allocations of one choice for each item, for two objectives: drop (minimise) and speedup (maximise).

    On its own in any Optuna study::

        items = [Item("layer1", (Choice({"layer1": 0}, 0, 0), Choice({"layer1": 1}, 0.02, 0.11), ...)), ...]
        sampler = hwprune.KnapsackSampler(items)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)

    The objective calls ``suggest_int`` or ``suggest_categorical`` with the names and ranges of `distributions`. If it sets the
    user attribute ``divergence`` (mean KL to the dense outputs), that guides the search instead of the drop, which is coarse.

    Args:
        items: what is decided on; see `Item`. Dominated choices are left out of the knapsack.
        coupled: ((unit, unit) -> (level, level) -> share of the time saved beyond the sum), for units named in `Choice.levels`.
        limits: see `Limits`.
        seed: draws follow from it and from how many proposals came before.
        explore: False: only the sweep of optima under the prior, as often as there are trials (the plain knapsack).
        trials: how many trials are planned; only the plain sweep needs to know.
        space: Optuna's distributions, if they allow more values than the choices name.
        canonical: turns parameters that another sampler chose into those of the choice that stands for them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        coupled: Mapping[tuple[str, str], Array] | None = None,
        limits: Limits | None = None,
        seed: int = 0,
        explore: bool = True,
        trials: int = 40,
        space: Mapping[str, BaseDistribution] | None = None,
        canonical: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        if not items:
            raise ValueError("a knapsack needs at least one item")
        self.items = tuple(items)
        self.limits = limits or Limits()
        self.seed, self.explore, self.trials = seed, explore, trials
        self._space = dict(space or {})
        self._canonical = canonical
        self._errors = [np.array([c.error for c in item.choices]) for item in self.items]
        self._saved = [np.array([c.saved for c in item.choices]) for item in self.items]
        self._saves = {
            name: [np.array([c.saves.get(name, 0.0) for c in item.choices]) for item in self.items]
            for name in self.limits.min_saved
        }
        self._gram = response_gram(self.items)
        self._pairs = item_couplings(self.items, coupled or {})
        self._useful = [
            undominated((-saved).tolist(), errors.tolist(), [(-rows[place]).tolist() for rows in self._saves.values()])
            for place, (saved, errors) in enumerate(zip(self._saved, self._errors, strict=True))
        ]
        self._keys = [tuple(sorted(item.choices[0].parameters)) for item in self.items]
        self._places = [
            {tuple(c.parameters[k] for k in keys): i for i, c in reversed(list(enumerate(item.choices)))}
            for item, keys in zip(self.items, self._keys, strict=True)
        ]
        self._factors = dict.fromkeys(self._saves, 1.0)
        """Resource -> what trials really saved over what their options say."""
        self.fitted_for = -1
        """Number of the trial for which `refit` was called last."""
        self._independent = optuna.samplers.RandomSampler(seed=seed)
        self._read: dict[int, tuple[Any, ...]] = {}
        self.divergence_model = ErrorModel(self._errors, self._gram)
        self.ratio_model = RatioModel(self._saved)
        # Of classifiers ten points are lost at some 0.4 nats; only the first proposals depend on it.
        self.drop_model = DropModel(1.5 * self.limits.reference_drop, self.limits.reference_drop)

    # -- Optuna's side -----------------------------------------------------------------------

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every parameter that the choices name."""
        if self._space:
            return dict(self._space)
        values: dict[str, list[Any]] = {}
        for item in self.items:
            for choice in item.choices:
                for name, value in choice.parameters.items():
                    known = values.setdefault(name, [])
                    if value not in known:
                        known.append(value)
        found: dict[str, BaseDistribution] = {}
        for name, known in values.items():
            whole = all(isinstance(v, int) and not isinstance(v, bool) for v in known)
            found[name] = IntDistribution(min(known), max(known)) if whole else CategoricalDistribution(tuple(known))
        return found

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal; where the user asks for fewer parameters than the items name, the others are ignored."""
        fixed = trial.system_attrs.get("fixed_params")
        if isinstance(fixed, dict) and set(search_space) <= set(fixed):
            return {}  # it was enqueued whole: a retry, or the user's own idea
        chosen, why = self.propose(study, trial.number)
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, why)
        parameters: dict[str, Any] = {}
        for item, option in zip(self.items, chosen, strict=True):
            parameters |= dict(item.choices[option].parameters)
        return {name: value for name, value in parameters.items() if name in search_space or not search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._independent.reseed_rng()

    # -- what was evaluated ------------------------------------------------------------------

    def _allocation(self, parameters: Mapping[str, Any]) -> Array | None:
        """The choices that a trial's parameters say; None if they say none of ours."""
        found = []
        if self._canonical is not None and parameters:
            parameters = self._canonical(parameters)
        for keys, places in zip(self._keys, self._places, strict=True):
            place = places.get(tuple(parameters.get(key) for key in keys))
            if place is None:
                return None
            found.append(place)
        return np.array(found, dtype=int)

    def _history(self, study: optuna.Study, number: int) -> History:
        seen = History()
        newer = study._storage.get_study_user_attrs(study._study_id).get(REMEASURED) or {}
        # `Study.get_trials` would give each thread's own older snapshot.
        for trial in study._storage.get_all_trials(study._study_id, deepcopy=False):
            if trial.number == number:
                continue
            if trial.state in (TrialState.RUNNING, TrialState.WAITING):
                chosen = self._allocation(planned_parameters(trial))
                if chosen is not None and trial.number < number:
                    seen.running.append(chosen)
                    seen.keys.add(chosen.tobytes())
                continue
            if trial._trial_id not in self._read:
                self._read[trial._trial_id] = self._facts(trial)
            chosen, divergence, weight, drop, ratio, sd, kind, saved = self._read[trial._trial_id]
            if chosen is None:
                continue
            if DUPLICATE in trial.system_attrs:  # nothing new is known by it
                seen.duplicates += trial.system_attrs[DUPLICATE] != trial.number
                continue
            if trial.state == TrialState.FAIL and self._lost(trial):
                continue
            seen.keys.add(chosen.tobytes())
            if divergence is None and drop is None:
                continue
            if ratio is not None and "speedup" in newer.get(str(trial.number), {}):
                again = newer[str(trial.number)]["speedup"]
                ratio, sd = 1 / again["value"], (again["ci_high"] - again["ci_low"]) / 2 / 1.96 / again["value"] ** 2
            for name, value in zip(
                ("chosen", "divergence", "weight", "drop", "ratio", "ratio_sd", "kind", "saved"),
                (chosen, divergence, weight, nan_if_none(drop), nan_if_none(ratio), sd, kind, saved),
                strict=True,
            ):
                getattr(seen, name).append(value)
        return seen

    @staticmethod
    def _lost(trial: FrozenTrial) -> bool:
        """Of a search of hwprune: did its process die? It is proposed again, as if it had not been."""
        leased = any(key.startswith("hwprune:") and key != PROPOSAL for key in trial.system_attrs)
        return leased and TOLD not in trial.system_attrs

    def _facts(self, trial: FrozenTrial) -> tuple[Any, ...]:
        chosen = self._allocation(trial.params)
        values = trial.values if trial.state == TrialState.COMPLETE else None
        drop = float(values[0]) if values else None
        ratio = 1 / float(values[1]) if values and values[1] > 0 else None
        given = trial.user_attrs.get(DIVERGENCE)
        divergence = max(float(given), 0.0) if given is not None else (None if drop is None else max(drop, 0.0))
        weight = float(trial.user_attrs.get(DIVERGENCE_WEIGHT, 1.0))
        sd = float(trial.user_attrs.get("ratio_sd", 0.0))
        kind = str(trial.system_attrs.get(PROPOSAL, {}).get("kind", ""))
        real = {name: float(trial.user_attrs[SAVED + name]) for name in self._saves if SAVED + name in trial.user_attrs}
        return chosen, divergence, weight, drop, ratio, sd, kind, real

    def refit(self, study: optuna.Study, number: int) -> History:
        """Fit the three models to what is finished (trials other than ``number``)."""
        seen = self._history(study, number)
        self.fitted_for = number
        count = len(self.items)
        chosen = np.array(seen.chosen, dtype=int).reshape(len(seen.chosen), count)
        divergence = np.array(seen.divergence)
        drop, ratio = np.array(seen.drop), np.array(seen.ratio)
        self.divergence_model.fit(chosen, divergence, np.array(seen.weight))
        timed = np.isfinite(ratio)
        self.ratio_model.fit(chosen[timed], ratio[timed], self.coupling(chosen[timed]), np.array(seen.ratio_sd)[timed])
        scored = np.isfinite(drop)
        self.drop_model.fit(divergence[scored], drop[scored])
        # Two axes of one layer save less together than the sum of what each saves; files hold more than weights.
        for name in self._saves:
            told, real = self._told(name, chosen), np.array([saved.get(name, np.nan) for saved in seen.saved])
            both = np.isfinite(real) & (told > 0)
            self._factors[name] = float(np.median(real[both] / told[both])) if both.any() else 1.0
        return seen

    def _told(self, resource: str, chosen: Array) -> Array:
        """What the options of each allocation say that they save of a resource."""
        found = np.zeros(len(chosen))
        for u, saves in enumerate(self._saves[resource]):
            found += saves[chosen[:, u]]
        return found

    def coupling(self, chosen: Array) -> Array:
        """Share of the time that couplings save, for each allocation."""
        found = np.zeros(len(chosen))
        for (u, v), table in self._pairs.items():
            found += table[chosen[:, u], chosen[:, v]]
        return found

    def predict(self, parameters: Mapping[str, Any]) -> dict[str, float] | None:
        """What is believed of a candidate: divergence, drop, ratio and its standard deviation. `refit` comes first."""
        chosen = self._allocation(parameters)
        if chosen is None:
            return None
        one = chosen[None]
        logs = self.divergence_model.samples(one, np.random.default_rng(0), 2)[0]
        ratio, sd = self.ratio_model.predict(one, self.coupling(one))
        divergence = float(np.exp(logs[0])) if chosen.any() else 0.0
        return {
            "divergence": divergence, "drop": float(self.drop_model(np.array([divergence]))[0]), "ratio": float(ratio[0]),
            "ratio_sd": float(sd[0]),
        }  # fmt: skip

    # -- proposals ---------------------------------------------------------------------------

    def propose(self, study: optuna.Study, number: int) -> tuple[list[int], dict[str, Any]]:
        """The next allocation, and why."""
        seen = self.refit(study, number)
        draw = np.random.default_rng([self.seed, seen.position])
        if not self.explore:
            return self._plain(seen, draw)
        done = len(seen.chosen)
        if self._gram is None and done < SWEEP and (first := self._sweep(seen, done)) is not None:
            return first
        pool, kinds = self._pool(seen, draw)
        if not len(pool):
            return self._anything(seen, draw)
        gain, ratio, sd, logs = self._value(pool, seen, draw)
        trust = self._trust(seen)
        gain = gain * np.array([trust.get(kind, PRIOR_SUCCESSES / PRIOR_TRIES) for kind in kinds])
        best = int(np.argmax(gain))
        if gain[best] <= 0:  # nothing can be expected to be of use: what misses the limits least
            best = int(np.argmin(self._excess(self.drop_model(np.exp(logs)), ratio)))
        return pool[best].tolist(), {
            "kind": kinds[best], "gain": float(gain[best]), "ratio": float(ratio[best]), "ratio_sd": float(sd[best]),
            "divergence": float(np.exp(logs[best])),
        }  # fmt: skip

    def _excess(self, drops: Array, ratios: Array) -> Array:
        """How far allocations are outside of what counts, relative to it."""
        drop, ratio = self.limits.reference
        found: Array = np.maximum(drops - drop, 0) / drop + np.maximum(ratios - ratio, 0) / ratio
        return found

    def _optima(self, errors: Sequence[Array], budgets: Array, saved: Sequence[Array] | None = None) -> list[list[int]]:
        """Optimal allocations for budgets (shares of dense); those that fit, each once.

        Args:
            saved: prices; default: as corrected by what was measured.
        """
        corrected = self.ratio_model.corrected() if saved is None else saved
        times = [-saved[useful] for saved, useful in zip(corrected, self._useful, strict=True)]
        costs = [error[useful] for error, useful in zip(errors, self._useful, strict=True)]
        pairs = {(u, v): -table[np.ix_(self._useful[u], self._useful[v])] for (u, v), table in self._pairs.items()}
        found: list[list[int] | None]
        if not self._saves:
            found = Allocation(times, costs, pairs).solve(budgets - 1)
        else:
            others = [
                [-self._factors[name] * saves[useful] for saves, useful in zip(rows, self._useful, strict=True)]
                for name, rows in self._saves.items()
            ]
            limits = [-needed for needed in self.limits.min_saved.values()]
            found = [
                solve_limits(costs, [times, *others], [budget - 1, *limits]) for budget in budgets[:: max(1, len(budgets) // 6)]
            ]
        unique: dict[tuple[int, ...], None] = {}
        for chosen in found:
            if chosen is not None:
                unique[tuple(useful[o] for useful, o in zip(self._useful, chosen, strict=True))] = None
        return [list(one) for one in unique]

    def _range(self, saved: Sequence[Array] | None = None) -> tuple[float, float]:
        """Ratios that can be reached."""
        corrected = self.ratio_model.corrected() if saved is None else saved
        low = 1 - sum(float(saved.max()) for saved in corrected) - sum(max(0.0, float(t.max())) for t in self._pairs.values())
        return max(low, 0.02), self.limits.reference[1]

    def _sweep(self, seen: History, done: int) -> tuple[list[int], dict[str, Any]] | None:
        """Until the scale of the divergence is known: bisect the ratios for the drop that is still of interest."""
        low, high = self._range()
        wanted = self.limits.reference[0]
        ratios = [r for r in seen.ratio if np.isfinite(r)]
        bad = [r for r, d in zip(seen.ratio, seen.drop, strict=True) if np.isfinite(r) and d >= wanted]
        good = [r for r, d in zip(seen.ratio, seen.drop, strict=True) if np.isfinite(r) and d < wanted]
        floor = max(bad, default=low)
        if done == 0:
            target = 0.45 * low + 0.55 * high
        elif not good:
            target = (floor + high) / 2
        else:  # the widest gap between what is too bad and dense
            edges = sorted([floor, *[r for r in ratios if r > floor], high])
            gaps = [(b - a, (a + b) / 2) for a, b in pairwise(edges)]
            target = max(gaps)[1]
        for allocation in self._optima(self._sensible(), np.linspace(target, high, 12)):
            if np.array(allocation).tobytes() not in seen.keys and any(allocation):
                return allocation, {"kind": "sweep", "ratio": target}
        return None

    def _sensible(self, draw: np.random.Generator | None = None) -> list[Array]:
        """Errors of the options under the sensitivities that are believed (or drawn)."""
        factors = self.divergence_model.sensitivities(draw)
        return [errors * factor for errors, factor in zip(self._errors, factors, strict=True)]

    def _plain(self, seen: History, draw: np.random.Generator) -> tuple[list[int], dict[str, Any]]:
        """Evenly spaced budgets, the prior's optima, nothing learned."""
        low, high = self._range(self._saved)
        budgets = np.linspace(high, low, self.trials + 2)[1:-1]
        place = seen.position % len(budgets)
        order = np.argsort(np.abs(np.arange(len(budgets)) - place))
        for at in order:
            for allocation in self._optima(self._errors, budgets[at : at + 1], self._saved):
                if any(allocation) and np.array(allocation).tobytes() not in seen.keys:
                    return allocation, {"kind": "plain", "ratio": float(budgets[at])}
        return self._anything(seen, draw)

    def _pool(self, seen: History, draw: np.random.Generator) -> tuple[Array, list[str]]:
        """Allocations that were not proposed yet: optima under several beliefs, and moves around the front."""
        low, high = self._range()
        budgets = np.linspace(low, high, BUDGETS)
        pool: dict[bytes, tuple[Array, str]] = {}

        def add(allocation: Sequence[int], kind: str) -> None:
            one = np.array(allocation, dtype=int)
            key = one.tobytes()
            if key not in seen.keys and one.any():
                pool.setdefault(key, (one, kind))

        for allocation in self._optima(self._sensible(), budgets):
            add(allocation, "mean")
        for allocation in self._optima(self._errors, budgets):
            add(allocation, "prior")
        drawn = DRAWS if self.divergence_model.correlation < TRUSTED else max(1, DRAWS // 2)
        if self._saves:
            drawn = 0  # an integer program for each budget takes its time; moves around the front look further
        for _ in range(drawn):
            for allocation in self._optima(self._sensible(draw), budgets):
                add(allocation, "thompson")
        for origin, kind, allocation in self._moves(seen, draw):
            del origin
            add(allocation, kind)
        if not pool:
            return np.zeros((0, len(self.items)), dtype=int), []
        rows = np.stack([one for one, _ in pool.values()])
        kinds = [kind for _, kind in pool.values()]
        for name, needed in self.limits.min_saved.items():
            fits = self._factors[name] * self._told(name, rows) >= needed
            rows, kinds = rows[fits], [kind for kind, fit in zip(kinds, fits, strict=True) if fit]
        return rows, kinds

    def _moves(self, seen: History, draw: np.random.Generator) -> list[tuple[int, str, list[int]]]:
        """Front members with up to `RADIUS` pairs of items changed: one takes a slower option, another a faster one."""
        members = self._front_members(seen)
        if not members:
            return []
        radius = self._radius(seen)
        found = []
        for step in range(MOVES):
            origin = members[step % len(members)]
            chosen = seen.chosen[origin].tolist()
            for _ in range(int(draw.integers(1, radius + 1))):
                u, v = draw.choice(len(self.items), 2, replace=len(self.items) < 2)
                for item, faster in ((int(u), True), (int(v), False)):
                    options = self._useful[item]  # fastest first
                    at = options.index(chosen[item]) if chosen[item] in options else len(options) - 1
                    to = at - 1 if faster else at + 1
                    if 0 <= to < len(options) and (faster or draw.random() < 0.7):
                        chosen[item] = options[to]
            found.append((origin, "move", chosen))
        return found

    def _front_members(self, seen: History) -> list[int]:
        scored = [i for i, (d, r) in enumerate(zip(seen.drop, seen.ratio, strict=True)) if np.isfinite(d) and np.isfinite(r)]
        smooth = self.drop_model(np.array([seen.divergence[i] for i in scored])).tolist()
        order = sorted(zip(scored, smooth, strict=True), key=lambda pair: (pair[1], seen.ratio[pair[0]]))
        members, best = [], np.inf
        for i, drop in order:
            if seen.ratio[i] < best and drop < self.limits.reference[0]:
                best = seen.ratio[i]
                members.append(i)
        return members

    @staticmethod
    def _trust(seen: History) -> dict[str, float]:
        """How often each kind of proposal came to lie on the front of what was evaluated before it.

        The largest of many expected gains is an overestimate, the more so the rougher the beliefs it comes from. Where plain
        optima keep what they promise and draws or moves do not, this says so, and the other way round.
        """
        wins: dict[str, float] = {}
        tries: dict[str, float] = {}
        ratios: list[float] = []  # the front so far, by rising ratio and so by falling divergence
        divergences: list[float] = []
        for kind, ratio, divergence in zip(seen.kind, seen.ratio, seen.divergence, strict=True):
            if not np.isfinite(ratio):
                continue
            at = bisect.bisect_right(ratios, ratio)
            beaten = at > 0 and divergences[at - 1] <= divergence
            if not beaten:
                end = at
                while end < len(divergences) and divergences[end] >= divergence:
                    end += 1
                ratios[at:end], divergences[at:end] = [ratio], [divergence]
            if kind:
                tries[kind] = tries.get(kind, 0.0) + 1
                wins[kind] = wins.get(kind, 0.0) + (not beaten)
        return {kind: (wins[kind] + PRIOR_SUCCESSES) / (count + PRIOR_TRIES) for kind, count in tries.items()}

    def _radius(self, seen: History) -> int:
        """Shrinks while moves fail, grows while they succeed (a trust region)."""
        front = set(self._front_members(seen))
        radius, failures, successes = float(RADIUS), 0, 0
        for i, kind in enumerate(seen.kind):
            if kind != "move":
                continue
            if i in front:
                successes, failures = successes + 1, 0
            else:
                successes, failures = 0, failures + 1
            if failures >= PATIENCE:
                radius, failures = max(1.0, radius / 2), 0
            if successes >= REWARD:
                radius, successes = min(2.0 * RADIUS, radius * 1.5), 0
        return max(1, round(radius))

    def _value(self, pool: Array, seen: History, draw: np.random.Generator) -> tuple[Array, Array, Array, Array]:
        """Expected hypervolume gain of each allocation, with its predicted ratio, deviation and ln KL."""
        logs = self.divergence_model.samples(pool, draw, SAMPLES)
        ratio, sd = self.ratio_model.predict(pool, self.coupling(pool), measured=False)
        ratios = ratio[None] + sd[None] * draw.standard_normal((SAMPLES, len(pool)))
        drops = self.drop_model(np.exp(logs))
        front = self._beliefs(seen)
        gain = improvement(drops, np.maximum(ratios, 0.01), front, self.limits.reference).mean(axis=0)
        return gain, ratio, sd, logs[0]

    def _beliefs(self, seen: History) -> Array:
        """(drop, ratio) of what was evaluated, drops smoothed; of what is running, as predicted."""
        drop, ratio_seen = np.array(seen.drop), np.array(seen.ratio)
        known = np.isfinite(drop) & np.isfinite(ratio_seen)
        for name, needed in self.limits.min_saved.items():  # what takes too much is on no front
            known &= ~(np.array([saved.get(name, np.nan) for saved in seen.saved]) < needed)
        smooth = self.drop_model(np.array(seen.divergence)[known])
        rows = np.array(seen.chosen, dtype=int).reshape(len(seen.chosen), len(self.items))[known]
        told = self.ratio_model.smooth(rows, self.coupling(rows), ratio_seen[known], np.array(seen.ratio_sd)[known])
        points = list(zip(smooth.tolist(), told.tolist(), strict=True))
        if seen.running:
            rows = np.stack(seen.running)
            logs = self.divergence_model.samples(rows, np.random.default_rng(0), 2)[0]
            ratio, _ = self.ratio_model.predict(rows, self.coupling(rows))
            points += list(zip(self.drop_model(np.exp(logs)).tolist(), ratio.tolist(), strict=True))
        return np.array(points, dtype=float).reshape(-1, 2)

    def _anything(self, seen: History, draw: np.random.Generator) -> tuple[list[int], dict[str, Any]]:
        """Something that was not proposed yet, near the front if possible; the space may be exhausted."""
        chosen = [0] * len(self.items)
        for attempt in range(400):
            start = seen.chosen[int(draw.integers(len(seen.chosen)))].tolist() if seen.chosen and attempt < 200 else None
            chosen = start or [int(draw.integers(len(item.choices))) for item in self.items]
            item = int(draw.integers(len(self.items)))
            chosen[item] = int(draw.integers(len(self.items[item].choices)))
            if np.array(chosen, dtype=int).tobytes() not in seen.keys and any(chosen):
                break
        return chosen, {"kind": "anything"}
