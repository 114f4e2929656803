"""Which mask patterns the target really executes faster: measured before the search, so that none pays for a dead option.

The profile's word is only the prior. A version of the whole model with as much of a pattern as the space allows is measured
against dense; what does not pay at its most does not pay at less.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hwprune import patterns
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency.source import over_sessions
from hwprune.pruning.uniform import uniform_recipe
from hwprune.records.measurement import Measurement
from hwprune.searching.evaluating.evaluator import Evaluator

SESSIONS = 4
LEAST_GAIN = 1.01
"""A pattern must surely be faster than this on the whole model."""


CONTENDED, LEAST_CONTENDED_GAIN = 0.5, 1.1
"""Share of a measurement during which others used the machine, from which a pattern must be faster by more."""


def pays(gain: Measurement) -> bool:
    contended = float(gain.conditions.get("contended", 0.0)) > CONTENDED
    return gain.ci_low > (LEAST_CONTENDED_GAIN if contended else LEAST_GAIN)


def reason(gain: Measurement) -> str:
    """Why a pattern that does not pay is left out."""
    return f"no speedup on this target: measured {gain.value:.2f} [{gain.ci_low:.2f}, {gain.ci_high:.2f}]"


def pattern_speedups(evaluator: Evaluator, names: Sequence[str], sparsity: float) -> dict[str, Measurement]:
    """Mask pattern -> speedup of a model with that pattern in every weight that it fits. Patterns that fit nowhere are left out.

    Args:
        sparsity: of patterns that don't fix theirs.
    """
    found: dict[str, Measurement] = {}
    for name in names:
        pattern = patterns.get(name)
        folder = evaluator.dense.home / "filter"
        try:
            level = pattern.fixed_sparsity if pattern.fixed_sparsity is not None else sparsity
            candidate = evaluator.pruner.prune(uniform_recipe(evaluator.pruner, name, level, "l2", "none"))
            path, _ = evaluator.files.write_candidate(candidate, folder)
            found[name] = _measured(evaluator, path)
            if pays(found[name]):
                # A false one costs half of the search, and of a few patterns on a busy machine one may look good by chance.
                found[name] = _measured(evaluator, path)
        except (CandidateFailure, UsageError):
            continue
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _measured(evaluator: Evaluator, path: Path) -> Measurement:
    """Speedup over a few sessions: what one session is off by would hide, or invent, a few percent."""
    sessions = []
    for _ in range(SESSIONS):
        evaluator.bench.load("candidate", path)
        sessions.append(evaluator.source.candidate(path))
    whole = over_sessions(sessions)
    conditions = {key: value for key, value in whole.speedup.conditions.items() if key != "passed"}
    return replace(whole.speedup, samples=whole.speedup.samples * SESSIONS, conditions=conditions)
