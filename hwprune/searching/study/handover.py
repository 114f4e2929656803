"""Trials that only a worker on the device can finish: everything but their latency is known."""

from __future__ import annotations

import time
from typing import Any

import optuna
from optuna.trial import TrialState

from hwprune.searching.study import lease
from hwprune.searching.study.attributes import HANDED_OVER
from hwprune.searching.study.backend import StudyBackend

CLAIM_S = 0.1
"""Seconds after which a worker looks whether it has claimed a trial: the one that wrote last sees itself."""


class Handover:
    """Hands trials over to workers on the device, and claims them there."""

    def __init__(self, backend: StudyBackend, watch: lease.Watch) -> None:
        self._backend, self._watch = backend, watch

    def hand_over(self, asked: optuna.Trial, scored: dict[str, Any]) -> None:
        """Everything but the latency is known; a worker on the device goes on."""
        with self._backend.errors():
            self._backend.set_attribute(asked._trial_id, HANDED_OVER, scored)

    def claim(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A trial that waits for its latency, now leased by this process."""
        for frozen in self._backend.frozen():
            if frozen.state != TrialState.RUNNING or HANDED_OVER not in frozen.system_attrs:
                continue
            scored = frozen.system_attrs[HANDED_OVER]
            holder = frozen.system_attrs.get(lease.LEASE)
            mine = lease.own()
            by_other = not lease.same(scored.get("by"), holder) and not lease.same(mine, holder)
            if by_other and self._watch.alive(frozen._trial_id, holder):
                continue  # another one on the device is timing it
            asked = self._backend.asked(frozen._trial_id)
            with self._backend.errors():
                self._backend.renew(asked, mine)
            time.sleep(CLAIM_S)
            now = next(t for t in self._backend.frozen() if t._trial_id == frozen._trial_id)
            if now.state == TrialState.RUNNING and lease.same(mine, now.system_attrs.get(lease.LEASE)):
                return asked, scored  # else another one has claimed it in the same moment
        return None
