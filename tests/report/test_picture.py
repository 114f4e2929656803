"""front.png."""

from __future__ import annotations

from hwprune.records.record import read_record
from hwprune.report.picture import draw
from hwprune.report.writing import write_report


def test_picture_is_a_png(run):
    write_report(run)
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_claims_nothing_between_two_points_and_shades_the_limit(run):
    """Drawn into axes of one's own, and read back from them."""
    from matplotlib.figure import Figure

    record = read_record(run)
    record.data["job"]["max_drop"] = 0.02
    axes = Figure().add_subplot()
    draw(record, axes)
    (step,) = [line for line in axes.get_lines() if line.get_drawstyle().startswith("steps")]
    assert step.get_drawstyle() == "steps-pre"  # up to a point's speedup its own score is what one gets
    ys = list(step.get_ydata())
    assert ys == sorted(ys, reverse=True)
    assert axes.get_ylabel() == "top1, % on test" and axes.get_xlabel() == "measured speedup over dense"
    shown = {round(y, 6) for y in ys[1:]}
    assert shown <= {round(100 * point["metric"]["value"], 6) for point in record.data["front"]}
    edge = max(patch.get_y() + patch.get_height() for patch in axes.patches)
    assert abs(edge - 100 * (record.dense_metric["value"] - 0.02)) < 1e-6 or edge <= axes.get_ylim()[0]


def test_where_less_is_better_less_is_above(run):
    from matplotlib.figure import Figure

    record = read_record(run)
    record.data["workload"]["higher_is_better"] = False
    axes = Figure().add_subplot()
    draw(record, axes)
    bottom, top = axes.get_ylim()
    assert bottom > top
