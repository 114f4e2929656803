"""Joules that were spent so far: the kernel's RAPL files and NVML first, then whatever the package zeus can read.

zeus (https://ml.energy/zeus, ``pip install 'hwprune[energy]'``) reads AMD's GPUs, the power rails of a Jetson, Apple's chips, and
RAPL without root, through its daemon zeusd (``ZEUSD_SOCK_PATH``). Some of its readers keep a polling process, so that only the
process that counts energy, which measures no latency, may ask it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from hwprune.latency import sensors

Counter = Callable[[], float | None]
"""Joules since some moment; None where the device does not answer."""

_CPU_FIELDS = ("cpu_energy_mj", "cpu_total_mj", "total_energy_mj")  # a Jetson, Apple, boards with one rail only
_GPU_FIELDS = ("gpu_energy_mj", "gpu_mj", "total_energy_mj")


def counter(device: str) -> tuple[str, Counter] | None:
    """The name of the counter of a runtime's ``device`` (cpu or cuda) and how to read it; None where nothing counts.

    All of them count the whole package, board or card, and thus everything that runs there.
    """
    own = sensors.gpu_energy_j if device == "cuda" else sensors.cpu_energy_j
    if own() is not None:
        return ("NVML" if device == "cuda" else "RAPL"), own
    for name, find in (("zeus, board", _board), ("zeus, GPU", _cards) if device == "cuda" else ("zeus, RAPL", _packages)):
        with contextlib.suppress(Exception):  # zeus is absent, finds no such device, or is refused by it
            read = find(device)
            if read() is not None:
                return name, functools.partial(_quiet, read)
    return None


def _quiet(read: Counter) -> float | None:
    """A device that stops answering has no energy, and no error."""
    with contextlib.suppress(Exception):
        return read()
    return None


def _board(device: str) -> Counter:
    """A system on a chip: a Jetson or one of Apple's."""
    from zeus.device import get_soc

    board = get_soc()

    def read() -> float | None:
        measured: Any = board.get_total_energy_consumption()
        found = (getattr(measured, field, None) for field in (_GPU_FIELDS if device == "cuda" else _CPU_FIELDS))
        first = next((value for value in found if value is not None), None)
        return None if first is None else float(first) / 1e3

    return read


def _cards(_: str) -> Counter:
    """The first visible GPU, which is the one that runs."""
    from zeus.device import get_gpus

    cards = get_gpus()
    return lambda: float(cards.get_total_energy_consumption(0)) / 1e3


def _packages(_: str) -> Counter:
    """All CPU packages."""
    from zeus.device import get_cpus

    packages = get_cpus().cpus
    return lambda: sum(float(one.get_total_energy_consumption().cpu_mj) for one in packages) / 1e3 if packages else None
