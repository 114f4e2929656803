"""Trials that are lost or running."""

from __future__ import annotations

import optuna

from hwprune.searching.sampling.knapsack import KnapsackSampler
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
