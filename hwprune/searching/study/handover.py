"""Trials that only a worker on the device can finish: everything but their latency is known."""

from __future__ import annotations

import random
import time
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hwprune.searching.study import lease
from hwprune.searching.study.attributes import CLAIM, HANDED_OVER
from hwprune.searching.study.backend import StudyBackend

TURN_S = 0.1
"""Two workers that claim a trial at the same moment both step back, for a random time up to this."""


class Handover:
    """Hands trials over to workers on the device, and claims them there.

    A worker writes its claim first and reads then who else has one. Of two, at least the one that writes later sees the other's,
    however slow the storage is, and steps back; so a trial is never claimed twice. (To look for one's own name after a while, as
    was done before, fails where a write takes longer than that while.)
    """

    def __init__(self, backend: StudyBackend, watch: lease.Watch) -> None:
        self._backend, self._watch = backend, watch

    def hand_over(self, asked: optuna.Trial, scored: dict[str, Any]) -> None:
        """Everything but the latency is known; a worker on the device goes on."""
        with self._backend.errors():
            self._backend.set_attribute(asked._trial_id, HANDED_OVER, scored)
            self._withdraw(asked._trial_id, lease.own())

    def claim(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A trial that waits for its latency, now leased by this process; None: there is none that is free."""
        mine = lease.own()
        for waiting in self._backend.frozen():
            if not self._is_free(waiting, mine):
                continue
            trial_id = waiting._trial_id
            with self._backend.errors():
                self._backend.set_attribute(trial_id, _claim_key(mine), mine)
                now = next(trial for trial in self._backend.frozen() if trial._trial_id == trial_id)
                if not self._is_free(now, mine):
                    self._withdraw(trial_id, mine)
                    time.sleep(random.uniform(0, TURN_S))
                    continue
                asked = self._backend.asked(trial_id)
                self._backend.renew(asked, mine)
            return asked, now.system_attrs[HANDED_OVER]
        return None

    def _is_free(self, trial: FrozenTrial, mine: dict[str, Any]) -> bool:
        """Does a trial wait, without a living worker that times it or has claimed it?"""
        if trial.state != TrialState.RUNNING or HANDED_OVER not in trial.system_attrs:
            return False
        scorer, holder = trial.system_attrs[HANDED_OVER].get("by"), trial.system_attrs.get(lease.LEASE)
        if not lease.same(scorer, holder) and not lease.same(mine, holder) and self._watch.alive(trial._trial_id, holder):
            return False
        claims = [(key, value) for key, value in trial.system_attrs.items() if key.startswith(CLAIM) and value]
        return not any(not lease.same(mine, claim) and self._watch.alive((trial._trial_id, key), claim) for key, claim in claims)

    def _withdraw(self, trial_id: int, mine: dict[str, Any]) -> None:
        self._backend.set_attribute(trial_id, _claim_key(mine), None)


def _claim_key(holder: dict[str, Any]) -> str:
    """The attribute for a process's claim: each has one of its own, so that none overwrites another's."""
    return f"{CLAIM}{holder['host']}:{holder['pid']}:{holder['started']}"
