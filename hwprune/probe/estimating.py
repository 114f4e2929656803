"""A probe of a device that is not here, from its data sheet."""

from __future__ import annotations

from hwprune.latency.roofline import Roofline
from hwprune.layers.labels import labels
from hwprune.probe.cut_segments import POINTS, CutSegments, touched
from hwprune.probe.findings import PatternProbe, Probe, Step, UnitProbe
from hwprune.probe.probing import Progress, quiet
from hwprune.probe.staircase import counts_for
from hwprune.pruning.pruner import Pruner
from hwprune.records.target import Target


def estimate(pruner: Pruner, target: Target, progress: Progress = quiet) -> Probe:
    """Probe by the profile's roofline, for a device that is not here. Nothing is measured.

    Raises:
        UsageError: the profile has no roofline.
    """
    roofline = Roofline(target)
    pieces = CutSegments(pruner)  # a roofline counts the elements in the target's precision by itself
    dense = pieces.segments(pieces.cut({}))
    dense_s = roofline.seconds(dense)
    each = {segment.name: roofline.segment(segment) for segment in dense}
    result = Probe(
        pruner.workload.name, target.name, "estimated", {"roofline": target.name}, dense_s, 0.0, target.multiple("default"), {}
    )
    result.shapes = [list(shape) for shape in pieces.shapes]
    axes = pieces.axes()
    names_for_people = labels(pruner.units.values())
    for number, unit in enumerate(axes):
        progress("estimating", number, len(axes))
        counts = counts_for(unit.size, POINTS, pieces.step(unit, unit.size))
        variants = {count: pieces.segments(pieces.cut({unit.name: count} if count < unit.size else {})) for count in counts}
        names = touched(variants)
        steps = tuple(
            Step(count, sum(roofline.segment(s).seconds for s in segments if s.name in names), 0.0, speedup, "estimated")
            for count, segments in variants.items()
            for speedup in [dense_s / roofline.seconds(segments)]
        )
        share = sum(each[name].seconds for name in names if name in each) / dense_s
        result.units.append(UnitProbe(unit.name, unit.role, unit.size, share, steps, None, label=names_for_people[unit.name]))
    if target.why_not("2:4") is None:
        flags = {segment.name: segment.macs > 0 for segment in dense}
        bound = dense_s / roofline.seconds(dense, flags)
        numbers = {"value": bound, "ci_low": bound, "ci_high": bound}
        result.patterns.append(
            PatternProbe("2:4", "every layer 2:4", numbers, "estimated", "at the sparse peak, which no kernel reaches")
        )
    for bound_by in ("launch", "memory"):
        share = sum(e.seconds for e in each.values() if e.bound == bound_by) / dense_s
        if share > 0.3:
            what = "launches of kernels" if bound_by == "launch" else "memory traffic"
            result.warnings.append(
                f"{100 * share:.0f} % of the estimated time is in layers bound by {what}: fewer channels save little there."
            )
    result.warnings.insert(
        0, f"ESTIMATED from the data sheet of {target.name}, not measured; by how much it is wrong is not known here."
    )
    return result
