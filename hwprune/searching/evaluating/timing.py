"""From a paired measurement to the speedup and latency of a trial."""

from __future__ import annotations

from typing import Any

from hwprune.records.measurement import Measurement

LIE = 3.0
"""Standard deviations from the prediction beyond which a latency is measured again before it is believed."""


def speedup_of(paired: dict[str, Any]) -> Measurement:
    """Speedup of a paired measurement, with how it was obtained."""
    wanted = "clock wall_speedup contended outliers throttled converged quads session_sd log_ratios passed".split()  # noqa: SIM905
    conditions: dict[str, Any] = {key: paired[key] for key in wanted if key in paired}
    if "conditions" in paired:
        conditions["machine"] = paired["conditions"]
    return Measurement(paired["speedup"], "x", paired["ci_low"], paired["ci_high"], paired["quads"], conditions)


def latency_of(paired: dict[str, Any]) -> Measurement:
    """Seconds for one batch."""
    conditions = {"clock": paired["clock"], "wall_s": paired["wall_latency_s"], "dense_s": paired["dense_latency_s"]}
    return Measurement(paired["latency_s"], "s", paired["latency_low_s"], paired["latency_high_s"], paired["quads"], conditions)
