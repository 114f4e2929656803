"""The knapsack sampler: an Optuna sampler that proposes optima of a knapsack over measured time and predicted divergence.

Every choice has a price (share of the dense time that it saves, from a table) and a prior error (what it does to the outputs,
to second order). A proposal is the optimum of a multiple-choice knapsack for some budget of time, under what the finished
trials have taught about savings and errors, and is chosen for the hypervolume that it is expected to add. What does not
add up (branches, neighbours, errors that cancel) is looked for around the front, a few options at a time.

Everything is rebuilt from the study at each proposal, so any storage and any number of processes work; the draws of a trial
follow from the seed and from how many proposals came before it, so that a kill changes none of the later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem, Array, Item, Limits
from hwprune.searching.sampling.proposals import Proposer
from hwprune.searching.study.attributes import PROPOSAL


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
        posterior: one that others share; default: an own one.
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
        posterior: Posterior | None = None,
    ) -> None:
        self.posterior = posterior or Posterior(AllocationProblem(items, coupled, limits, canonical))
        self.problem = self.posterior.problem
        self._space = dict(space or {})
        self._proposer = Proposer(self.posterior, seed, explore=explore, trials=trials)
        self._independent = optuna.samplers.RandomSampler(seed=seed)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every parameter that the choices name."""
        return dict(self._space) or self.problem.distributions()

    def propose(self, study: optuna.Study, number: int) -> tuple[list[int], dict[str, Any]]:
        """The next allocation (a choice for each item), and why."""
        return self._proposer.propose(study, number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal; where the user asks for fewer parameters than the items name, the others are ignored."""
        fixed = trial.system_attrs.get("fixed_params")
        if isinstance(fixed, dict) and set(search_space) <= set(fixed):
            return {}  # it was enqueued whole: a retry, or the user's own idea
        allocation, why = self.propose(study, trial.number)
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, why)
        parameters = self.problem.parameters(allocation)
        return {name: value for name, value in parameters.items() if name in search_space or not search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._independent.reseed_rng()
