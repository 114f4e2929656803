"""What a search gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from hwprune.deploy import exporting
from hwprune.errors import UsageError
from hwprune.records.choosing import within
from hwprune.records.measurement import Measurement
from hwprune.records.trial import Trial

if TYPE_CHECKING:
    import pandas

    from hwprune.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A point of the front and where its files are.

    Attributes:
        metric, drop: on the test split (or on validation where there is none), which has chosen nothing.
        paired_drop: the same drop with its interval: dense and point are compared example by example.
        told_drop, told_high: what validation and all trials together said of the drop before, and what it is surely below; points
            are chosen by them.
    """

    trial: Trial
    metric: Measurement
    drop: float
    latency: Measurement
    speedup: Measurement
    folder: Path
    paired_drop: Measurement | None = None
    told_drop: float | None = None
    told_high: float | None = None

    def export(self, out: str | Path, format: str = "onnx", workload: Workload | None = None) -> Path:  # noqa: A002 - the contract's word
        """Write the point's files into a folder; formats as in `hwprune.deploy.exporting.FORMATS`.

        ``workload``: for ``pt2`` of a run made from a live Python object, which can't be loaded again by its source.
        """
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
        """With ``max_drop``: the fastest point that is surely within it, by what validation said; else with ``min_speedup``: the
        most accurate; else the fastest.

        Raises:
            UsageError: no point meets it; says which is the nearest.
        """
        return choose(self.points, max_drop, min_speedup)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a trial, as trials.csv."""
        import pandas

        return pandas.read_csv(self.run / "trials.csv")


class Chosen(Protocol):
    """What a point of a front has, wherever it comes from: of a finished search, or of a record."""

    @property
    def trial(self) -> object:
        """Its trial, or the trial's number."""

    @property
    def drop(self) -> float: ...

    @property
    def speedup(self) -> Measurement: ...

    @property
    def told_drop(self) -> float | None: ...

    @property
    def told_high(self) -> float | None: ...


P = TypeVar("P", bound=Chosen)


def choose(points: Sequence[P], max_drop: float | None, min_speedup: float | None) -> P:
    """One of the points by the rule of `Result.best`.

    Raises:
        UsageError: no point meets it; says which is the nearest.
    """
    if not points:
        raise UsageError("the front is empty: no candidate was faster than dense within the constraints")
    fits = [p for p in within(points, max_drop) if min_speedup is None or p.speedup.value >= min_speedup]
    if not fits:
        nearest = min(points, key=lambda p: p.drop) if max_drop is not None else max(points, key=lambda p: p.speedup.value)
        wanted = [f"drop <= {max_drop:g}"] if max_drop is not None else []
        wanted += [f"speedup >= {min_speedup:g}"] if min_speedup is not None else []
        number = getattr(nearest.trial, "number", nearest.trial)
        raise UsageError(
            f"no point of the front has {' and '.join(wanted)}; the nearest is trial {number} "
            f"with drop {nearest.drop:.4f} at {nearest.speedup.value:.2f}x"
        )
    if max_drop is None and min_speedup is not None:
        return min(fits, key=lambda p: p.drop)
    return max(fits, key=lambda p: p.speedup.value)
