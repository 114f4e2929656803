"""Trials that are lost or running."""

from __future__ import annotations

import numpy as np
import optuna

from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem, Limits
from hwprune.searching.study.attributes import TRAINED_DROPS
from tests.searching.sampling.helpers import Problem


def test_running_trials_are_not_proposed_again():
    problem = Problem(6)
    sampler = KnapsackSampler(problem.items())
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    asked = [study.ask(sampler.distributions()) for _ in range(6)]  # none is told
    assert len({tuple(t.params.values()) for t in asked}) == 6


def test_a_trial_that_was_lost_to_a_kill_changes_no_later_proposal():
    problem = Problem(9)
    space = KnapsackSampler(problem.items()).distributions()

    def run(killed_at):
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=KnapsackSampler(problem.items(), seed=3))
        found = []
        while len(found) < 10:
            asked = study.ask(space)
            if len(found) == killed_at:
                study._storage.set_trial_system_attr(asked._trial_id, "hwprune:lease", {})
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(asked.params)
                killed_at = None
                continue
            levels = [asked.params[f"u{u}"] for u in range(12)]
            kl, drop, ratio = problem.evaluate(levels)
            asked.set_user_attr("divergence", kl)
            study.tell(asked, (drop, 1 / ratio))
            found.append(levels)
        return found

    assert run(None) == run(5)


def test_once_trainings_have_taught_something_the_search_goes_by_drops_after_them():
    """Untrained, nothing beyond a ratio of 0.8 is of use; trained, drops are a twentieth: that is where proposals have to be."""
    problem = Problem(4)

    def run(tell):
        sampler = KnapsackSampler(problem.items(), seed=1, limits=Limits(reference_drop=0.03))
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        space, told, ratios = sampler.distributions(), {}, []
        for number in range(20):
            asked = study.ask(space)
            kl, drop, ratio = problem.evaluate([asked.params[f"u{u}"] for u in range(12)])
            asked.set_user_attr("divergence", kl)
            study.tell(asked, (drop, 1 / ratio))
            ratios.append(ratio)
            if tell and number in (3, 5, 7):
                told[str(number)] = [drop / 20, 0.001]
                study.set_user_attr(TRAINED_DROPS, told if len(told) > 1 else {})
        return study, np.array(ratios)

    _, plain = run(tell=False)
    study, trained = run(tell=True)
    assert np.median(trained[8:]) < np.median(plain[8:]) - 0.05
    posterior = Posterior(AllocationProblem(problem.items(), limits=Limits(reference_drop=0.03)))
    seen = posterior.refit(study, 10**9)
    assert np.isfinite(seen.drop_sd).sum() == 3 and np.isinf(seen.drop_sd).sum() == 17
    untrained = [t.values[0] for t in study.trials]
    curve = posterior.drop(np.array(seen.divergence))
    assert np.median(curve / np.array(untrained)) < 0.3  # the curve is that of trained candidates
    assert np.allclose(
        posterior.told_drops(seen)[np.isinf(seen.drop_sd)], np.maximum(curve, posterior.floor)[np.isinf(seen.drop_sd)]
    )
