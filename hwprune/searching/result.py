"""What a search gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hwprune.common import html_table
from hwprune.deploy import exporting
from hwprune.errors import UsageError
from hwprune.records.choosing import within
from hwprune.records.measurement import Measurement
from hwprune.records.record import read_record
from hwprune.records.trial import Trial
from hwprune.report.picture import draw
from hwprune.report.tables import write_tables
from hwprune.report.text import front_rows, summary, verdict

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
    """A search: what was tried, and what can be deployed.

    `hwprune.search` returns one; `hwprune.load` makes one from any run directory.

        >>> result = hwprune.load(RUN)
        >>> point = result.best(max_drop=0.05)
        >>> point.speedup.value > 1
        True

    Attributes:
        run: the run directory.
        trials: every evaluated recipe, failed ones included.
        points: the confirmed front, fastest last; empty while the search is not finished.
        notes: what the user should know, in whole sentences.
        finished: has the front been confirmed?
    """

    run: Path
    trials: tuple[Trial, ...]
    points: tuple[FrontPoint, ...]
    notes: tuple[str, ...] = ()
    finished: bool = True

    @property
    def front(self) -> tuple[Trial, ...]:
        """Trials of the confirmed front, fastest last."""
        return tuple(point.trial for point in self.points)

    def best(self, max_drop: float | None = None, min_speedup: float | None = None) -> FrontPoint:
        """With ``max_drop``: the fastest point that is surely within it, by what validation said; else with ``min_speedup``: the
        most accurate; else the fastest of all, whatever its drop (`hwprune export` without a limit takes what the report
        recommends instead).

        Raises:
            UsageError: no point meets it; says which is the nearest.
        """
        return choose(self.points, max_drop, min_speedup)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a trial, as trials.csv."""
        import pandas

        path = self.run / "trials.csv"
        if not path.is_file():  # the search is not finished
            write_tables(read_record(self.run), self.run)
        return pandas.read_csv(path)

    def plot(self, axes: Any = None) -> Any:
        """Draw the front: the metric, upwards, against speedup; of an unfinished search its candidates.

        Args:
            axes: of matplotlib; default: those of a new figure.

        Returns:
            The axes.

        Raises:
            UsageError: no trial has finished yet.
        """
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(8, 5), layout="constrained").add_subplot()
        draw(read_record(self.run), axes)
        return axes

    def __str__(self) -> str:
        if not (self.run / "record.json").is_file():
            return f"{self.run}: no trial has finished yet"
        return summary(read_record(self.run))

    def _repr_html_(self) -> str:
        """What a notebook shows: the front, dense first."""
        if not (self.run / "record.json").is_file():
            return html_table.table(f"{self.run}: no trial has finished yet", (), ())
        record = read_record(self.run)
        return html_table.table(
            f"{record.data['workload']['name']} on {record.target_label}",
            ["", "speedup", "drop", record.data["workload"]["metric"], "latency", "parameters", "file"],
            front_rows(record),
            verdict(record),
        )


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
