"""What a search gives back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.deploy.quantise import PRECISIONS
from hwprune.errors import UsageError
from hwprune.measurement import Measurement
from hwprune.searching.confirm import Confirmed
from hwprune.trial import Trial

if TYPE_CHECKING:
    import pandas

    from hwprune.workload import Workload


TRAINING = "training"
"""What follows the number of a candidate in the name of the folder that holds the checkpoints of its training."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A point of the front and where its files are."""

    trial: Trial
    metric: Measurement
    drop: float
    latency: Measurement
    speedup: Measurement
    folder: Path

    def export(self, out: str | Path, format: str = "onnx", workload: Workload | None = None) -> Path:  # noqa: A002 - the contract's word
        """Write the point's files into a folder; formats as in `hwprune.deploy.exporting.FORMATS`.

        ``workload``: for ``pt2`` of a run made from a live Python object, which can't be loaded again by its source.
        """
        from hwprune.deploy import exporting

        return exporting.export_run(self.folder.parent.parent, self.trial.number, format, Path(out), workload)


@dataclass(frozen=True, slots=True)
class Result:
    """A finished search.

    Attributes:
        run: the run directory.
        trials: every evaluated recipe, failed ones included.
        points: the confirmed front, fastest last.
        notes: what the user should know, in whole sentences.
    """

    run: Path
    trials: tuple[Trial, ...]
    points: tuple[FrontPoint, ...]
    notes: tuple[str, ...] = ()

    @property
    def front(self) -> tuple[Trial, ...]:
        """Trials of the confirmed front, fastest last."""
        return tuple(point.trial for point in self.points)

    def best(self, max_drop: float | None = None, min_speedup: float | None = None) -> FrontPoint:
        """With ``max_drop``: the fastest point within it; else with ``min_speedup``: the most accurate; else the fastest.

        Raises:
            UsageError: no point meets it; says which is the nearest.
        """
        point: FrontPoint = choose(self.points, max_drop, min_speedup)
        return point

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a trial, as trials.csv."""
        import pandas

        return pandas.read_csv(self.run / "trials.csv")


def choose(points: Sequence[Any], max_drop: float | None, min_speedup: float | None) -> Any:
    """One of the points (with ``drop`` and ``speedup``) by the rule of `Result.best`."""
    if not points:
        raise UsageError("the front is empty: no candidate was faster than dense within the constraints")
    fits = [
        p for p in points
        if (max_drop is None or p.drop <= max_drop) and (min_speedup is None or p.speedup.value >= min_speedup)
    ]  # fmt: skip
    if not fits:
        nearest = min(points, key=lambda p: p.drop) if max_drop is not None else max(points, key=lambda p: p.speedup.value)
        wanted = [f"drop <= {max_drop:g}"] if max_drop is not None else []
        wanted += [f"speedup >= {min_speedup:g}"] if min_speedup is not None else []
        raise UsageError(
            f"no point of the front has {' and '.join(wanted)}; the nearest is trial {nearest.trial.number} "
            f"with drop {nearest.drop:.4f} at {nearest.speedup.value:.2f}x"
        )
    if max_drop is None and min_speedup is not None:
        return min(fits, key=lambda p: p.drop)
    return max(fits, key=lambda p: p.speedup.value)


def point_of(confirmed: Confirmed, run: Path) -> FrontPoint:
    return FrontPoint(
        confirmed.trial,
        confirmed.metric,
        confirmed.drop,
        confirmed.latency,
        confirmed.speedup,
        run / "candidates" / str(confirmed.trial.number),
    )


def clear_candidates(run: Path, keep: set[int], among: set[int] | None = None) -> None:
    """Remove the folders of all candidates but these.

    Args:
        among: only of these; others may be in the making.
    """
    folder = run / "candidates"
    for path in folder.iterdir() if folder.is_dir() else ():
        number, _, kind = path.name.partition(".")
        if kind in PRECISIONS:  # a quantised form in the making, by a search that was killed
            shutil.rmtree(path, ignore_errors=True)
            continue
        if kind == TRAINING and among is not None:
            continue  # a training that was stopped goes on from there
        if number.isdigit() and int(number) not in keep and (among is None or int(number) in among):
            shutil.rmtree(path, ignore_errors=True)
