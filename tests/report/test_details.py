"""What was cut, and how the search went, as rows."""

from __future__ import annotations

import pytest

from hwprune.records.record import read_record
from hwprune.report.details import candidate_rows, kind_rows, layer_times, unit_rows


def test_why_a_unit_was_left_alone(run):
    record = read_record(run)
    point = record.data["front"][0]
    row = next(t for t in record.data["trials"] if t["number"] == point["trial"])
    unit = {"role": "channel", "levels": {}, "methods": []}
    record.data["space"].update(
        channel_multiple=16,
        units=[
            {**unit, "name": "a.weight:0", "size": 64, "saves": [[16, 0.123], [64, 0.0]]},
            {**unit, "name": "b.weight:0", "size": 64, "saves": [[16, 0.0001], [64, 0.0]]},
            {**unit, "name": "c.weight:0", "size": 74, "saves": []},
            {**unit, "name": "d.weight:0", "size": 64, "saves": [[16, 0.3], [64, 0.0]]},
            {**unit, "name": "add", "role": "branch", "size": 10, "saves": [[0, 0.2], [10, 0.0]]},
        ],
    )
    row["recipe"]["choices"] = [
        {"unit": "c.weight:0", "pattern": "channel", "sparsity": 0.5, "method": "l2"},
        {"unit": "add", "pattern": "branch", "sparsity": 1.0, "method": "drop"},
    ]
    record.data["baseline"]["footprint"] = {"layers": {"a.weight": 1e-6, "d.weight": 2e-6}}
    point["footprint"] = {"layers": {"a.weight": 1e-6}}
    rows = {entry["unit"]: entry for entry in unit_rows(record, point)}
    assert rows["a.weight:0"]["why"] == "would save at most 12.3 % of the time by itself"
    assert rows["b.weight:0"]["why"] == "none of its sizes saves time here"
    assert rows["c.weight:0"]["why"] == "37 pad to 48: the kernels work in steps of 16"
    assert (rows["d.weight:0"]["pattern"], rows["d.weight:0"]["kept"]) == ("gone", "0 of 64")
    assert rows["add"]["kept"] == "dropped"


def test_labels_are_shown_where_the_record_has_them(run):
    record = read_record(run)
    units = record.data["space"]["units"]
    assert all(unit["label"] for unit in units)
    units[0]["label"] = "blocks.1 (residual branch)"
    del units[1]["label"]  # a record of an earlier version
    rows = unit_rows(record, record.data["front"][0])
    assert rows[0]["label"] == "blocks.1 (residual branch)" and rows[1]["label"] == units[1]["name"]


def test_kinds_of_proposals_count_every_measured_trial(run):
    record = read_record(run)
    measured = [row for row in record.data["trials"] if row["state"] == "measured"]
    assert sum(int(row[1]) for row in kind_rows(record)) == len(measured)
    assert 1 <= sum(int(row[2]) for row in kind_rows(record)) <= len(measured)


def test_candidates_can_be_sorted_and_failures_are_among_them(run):
    record = read_record(run)
    first = record.data["trials"][0]
    failed = {key: first[key] for key in ("origin", "recipe")}
    record.data["trials"].append({**failed, "number": 77, "state": "failed", "failure": {"stage": "run", "reason": "x"}})
    rows = candidate_rows(record)
    assert len(rows) == len(record.data["trials"])
    assert [cell["text"] for cell in rows[-1]][:4] == ["77", first["origin"], "failed (run)", ""]
    assert rows[-1][3]["key"] is None and isinstance(rows[0][3]["key"], float)


def test_layers_add_up_to_the_measured_latency(run):
    """The profiler's own time in each layer would tell other sums than the latencies that stand beside them."""
    record = read_record(run)
    point = record.data["front"][0]
    base = record.data["baseline"]
    base["footprint"] = {"layers": {"a": 3e-3, "gone": 1e-3}}
    point["footprint"] = {"layers": {"a": 5e-4, "added": 5e-4}}
    rows = layer_times(record, point)
    dense, now = 1e6 * base["latency"]["value"], 1e6 * point["latency"]["value"]
    wanted = [["a", 0.75 * dense, now / 2], ["gone", dense / 4, 0.0], ["added", 0.0, now / 2]]
    assert rows == [[name, pytest.approx(before), pytest.approx(after)] for name, before, after in wanted]
