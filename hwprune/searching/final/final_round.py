"""The last part of a search: the front confirmed, its finalists trained and quantised where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hwprune.common import formatting
from hwprune.records.measurement import first_targets
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.final import quantise_finalists, train_finalists
from hwprune.searching.final.confirm import Confirmer
from hwprune.searching.final.point import Confirmed, join_front, rescaled
from hwprune.searching.resolved_job import ResolvedJob


@dataclass(frozen=True, slots=True)
class FinalFront:
    """What a search delivers.

    Attributes:
        points: the front over all that was confirmed, fastest last.
        untrained: the front before any training or quantising.
        trained, quantised: what came of the two, on the front or not.
        dense: the dense model's numbers, of the last measurement.
        notes: what the user should know, in whole sentences.
    """

    points: tuple[Confirmed, ...]
    untrained: tuple[Confirmed, ...]
    trained: tuple[Confirmed, ...]
    quantised: tuple[Confirmed, ...]
    dense: Baseline
    notes: tuple[str, ...]


TRAINING, QUANTISING = "train the finalists", "quantise the front"
"""Phases that are only there where they are asked for."""


def run_final_round(confirmer: Confirmer, job: ResolvedJob, phase: Callable[[str], None] = lambda _name: None) -> FinalFront:
    """Confirm the front, then train and quantise as the job says.

    Args:
        phase: told when one of the two begins.

    Raises:
        RunError: the dense model can't be measured again, or a cut is wrong.
    """
    evaluator, store, progress = confirmer.evaluator, confirmer.store, confirmer.progress
    confirmation = confirmer.confirm_front()
    untrained, dense, notes = confirmation.points, confirmation.dense, list(confirmation.notes)
    points: Sequence[Confirmed] = untrained
    trained: tuple[Confirmed, ...] = ()
    quantised: tuple[Confirmed, ...] = ()
    if job.training is not None:
        phase(TRAINING)
        made = train_finalists.train_finalists(evaluator, store, job.training, job.constraints, progress, confirmer.limits)
        confirmation = confirmer.confirm(made.trials, dense)
        trained, dense = confirmation.points, confirmation.dense
        notes += [*made.notes, *(note for note in confirmation.notes if note not in notes)]
        points = join_front(points, trained, job.constraints) if trained else points
    if job.precisions:
        phase(QUANTISING)
        made = quantise_finalists.quantise_points(evaluator, store, job.precisions, points, progress)
        confirmation = confirmer.confirm(made.trials, dense)
        quantised, dense = confirmation.points, confirmation.dense
        notes += [*made.notes, *(note for note in confirmation.notes if note not in notes)]
        points = join_front(points, quantised, job.constraints) if quantised else points
        share = formatting.is_share(dense.metric.value, higher_is_better=evaluator.metric.higher_is_better)
        notes += quantise_finalists.left_out(quantised, points, share=share)
    if job.measured:
        dense_s = (
            dense.latency.value * first_targets(dense.self_speedup).value
        )  # its own row is divided by what it measured against itself
        points, untrained, trained, quantised = (tuple(rescaled(g, dense_s)) for g in (points, untrained, trained, quantised))
    return FinalFront(tuple(points), untrained, trained, quantised, dense, tuple(notes))
