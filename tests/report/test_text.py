"""The summary in a terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hwprune.records.record import Record, read_record
from hwprune.report.text import advice, emptiness, summary, table


def test_narrow_terminals_lose_columns_not_lines(run):
    record = read_record(run)
    for width in (40, 60, 200):
        lines = summary(record, width).splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip().startswith("speedup"))
        rows = lines[start : start + 2 + len(record.data["front"])]
        assert len(rows) == 2 + len(record.data["front"])
        assert all(len(line) <= width for line in rows)
        assert any(line.startswith("(no room for") and "file" in line for line in lines) == (width < 200)


def test_table_aligns():
    assert table(["", "b"], [["x", "10"], ["long", "1"]], 80) == "       b\nx     10\nlong   1"


def test_a_chain_tells_every_step(run):
    from hwprune.report.text import chain

    record = read_record(run)
    first = record.data["trials"][0]
    again = {**first, "number": 90, "recovery": {"of": first["number"], "plan": {"kind": "distill", "epochs": 2.0}}}
    last = {**first, "number": 91, "recovery": again["recovery"], "quantised": {"of": 90, "precision": "int8"}}
    record.data["trials"] += [again, last]
    assert [row[:2] for row in chain(record, 91)] == [
        ["dense", ""], [f"pruned{'' if first['number'] in {p['trial'] for p in record.data['front']} else ' (search)'}", f"trial {first['number']}"],
        ["trained, distill:2 (search)", "trial 90"], ["quantised to int8 (search)", "trial 91"],
    ]  # fmt: skip


def _trial(state, speedup=1.0, reason="out of memory"):
    row = {"state": state, "speedup": {"value": speedup}}
    return {**row, "failure": {"stage": "run", "reason": reason}} if state == "failed" else row


@pytest.mark.parametrize(
    ("trials", "why", "what"),
    [
        ([], "none was evaluated", "--time"),
        (
            [_trial("failed"), _trial("failed"), _trial("failed", reason="other")],
            "2 of 3 failed with run: out of memory",
            "trials.csv",
        ),
        ([_trial("measured", 0.9), _trial("measured", 0.8)], "none is faster than dense (the fastest measured 0.90x)", "probe"),
        ([_trial("measured", 0.9), _trial("measured", 1.8)], "none is faster than dense within the constraints", "limits"),
    ],
)
def test_why_a_front_is_empty_and_what_to_do(trials, why, what):
    record = SimpleNamespace(data={"trials": trials})
    assert why in emptiness(record)
    assert what in advice(record)


def test_a_faster_point_that_is_not_taken_is_explained(run):
    """Its score is within the limit, and people see that; what validation said of it is not."""
    record = read_record(run)
    slow, fast = (
        {**record.data["front"][0], "trial": trial, "drop": drop, "told_drop": drop, "told_high": high,
         "speedup": {**record.data["front"][0]["speedup"], "value": speedup}}
        for trial, drop, high, speedup in ((0, 0.001, 0.004, 2.0), (1, 0.005, 0.012, 3.0))
    )  # fmt: skip
    record.data["job"]["max_drop"] = 0.01
    told = " ".join(summary(Record.from_json({**record.data, "front": [slow, fast]}), 500).split())
    assert (
        "Trial 1 is faster (3.00x) and scores within it here, but validation was not 90 % sure of that (up to 1.2 points)" in told
    )
    fast["told_high"] = 0.009
    assert "not 90 % sure" not in summary(Record.from_json({**record.data, "front": [slow, fast]}), 500)
