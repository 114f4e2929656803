"""What libraries read from the environment when they are imported, set for the command line's own process."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

WAITING, SPINNING = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
OWN = "HWPRUNE_SET_WAIT_POLICY"
"""Set where `WAITING` is ours and not the user's."""


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what the user has not: no progress bars of other libraries, and threads that sleep while they wait.

    Threads that wait for each other by spinning take the cores from those that they wait for. Beside two other processes on two
    cores, solving the options of three layers took 10 to 65 s; with sleeping threads 7 to 10 (and 4.4 instead of 4.3 alone).
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):  # they would be drawn over ours
        environment.setdefault(name, "1")
    if WAITING not in environment and SPINNING not in environment:
        environment[WAITING], environment[OWN] = "PASSIVE", "1"


def as_the_user_has_it(environment: MutableMapping[str, str]) -> None:
    """Take back what changes how fast a model runs: for the process that measures."""
    if environment.pop(OWN, None):
        environment.pop(WAITING, None)
