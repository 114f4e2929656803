"""What a report says of several targets."""

from __future__ import annotations

from typing import Any

from hwprune.records.record import Record
from hwprune.report import fleet_table


def point(trial: int, **speedups: float) -> dict[str, Any]:
    each = {
        name: {
            "speedup": {"value": value, "ci_low": 0.99 * value, "ci_high": 1.01 * value},
            "latency": {"value": 1e-3 / value, "ci_low": 1e-3 / value, "ci_high": 1e-3 / value},
        }
        for name, value in speedups.items()
    }
    return {"trial": trial, "speedup": {"value": min(speedups.values()), "conditions": {"targets": each}}}


def record(*points: dict[str, Any], names: tuple[str, ...] = ("a", "b")) -> Record:
    target = {"name": names[0], "fleet": [{"profile": {"name": name}, "weight": None} for name in names]}
    baseline = {"self_speedup": point(-1, **dict.fromkeys(names, 1.0))["speedup"]}
    return Record({"target": target, "baseline": baseline, "front": list(points)}, ())


def test_disagreements_name_who_is_faster_where():
    found = fleet_table.disagreements(record(point(1, a=2.0, b=3.0), point(2, a=3.0, b=2.0), point(3, a=4.0, b=4.0)))
    assert found == ["trial 1 is faster than trial 2 on b, and slower on a"]


def test_widest_gap_comes_first():
    points = [point(1, a=1.0, b=9.0), point(2, a=9.0, b=1.0), point(3, a=8.0, b=1.2)]
    assert fleet_table.disagreements(record(*points))[0].startswith("trial 1 is faster than trial 2")


def test_overlapping_intervals_are_no_disagreement():
    one = record(point(1, a=2.0, b=2.01), point(2, a=2.5, b=2.0))
    assert fleet_table.disagreements(one) == []
    assert "agree" in fleet_table.sentence(one)


def test_rows_and_columns():
    one = record(point(1, a=2.0, b=3.0))
    assert fleet_table.fleet_rows(one) == [
        ["dense", "1.00 ms", "1.00 ms"],
        ["trial 1", "2.00x [1.98, 2.02]", "3.00x [2.97, 3.03]"],
    ]
    assert set(fleet_table.cells(one, one.data["front"][0])) == set(fleet_table.columns(one))


def test_one_target_has_none_of_it():
    one = Record({"target": {"name": "cpu"}, "front": [{"speedup": {"conditions": {}}}], "baseline": {}}, ())
    assert (fleet_table.fleet_rows(one), fleet_table.columns(one), fleet_table.sentence(one)) == ([], [], "")
