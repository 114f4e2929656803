"""The report only reads: what it shows comes from record.json, and nothing in there can inject anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from hwprune.records.record import read_record
from hwprune.report.page import write_page
from hwprune.report.text import summary
from hwprune.report.writing import write_report
from tests.report.helpers import EVIL


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]


def parse(path):
    parser = Tags()
    parser.feed(path.read_text())
    return parser


def test_page_is_one_file_without_outside_links(run):
    write_report(run)
    found = parse(run / "report.html")
    assert found.links == ["data:,"]
    assert "script" in found.tags


def test_names_can_not_inject(run):
    data = json.loads((run / "record.json").read_text())
    data["workload"]["name"] = EVIL
    data["notes"].append(EVIL)
    for trial in data["trials"]:
        for choice in trial["recipe"]["choices"]:
            choice["unit"] = EVIL
    for unit in data["space"]["units"]:
        unit["name"] = EVIL
    (run / "record.json").write_text(json.dumps(data))
    before = len([t for t in _tags_of_plain(run) if t == "script"])
    write_report(run)
    found = parse(run / "report.html")
    assert "img" not in found.tags
    assert len([t for t in found.tags if t == "script"]) == before
    embedded = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', (run / "report.html").read_text(), re.DOTALL
    )
    assert EVIL in json.loads(embedded[1])["notes"]


def _tags_of_plain(run):
    record = read_record(run)
    record.data["workload"]["name"] = "plain"
    record.data["notes"] = []
    write_page(record, run / "plain.html")
    return parse(run / "plain.html").tags


def test_unfinished_and_empty_runs_have_a_report(run):
    data = json.loads((run / "record.json").read_text())
    data.update(finished=False, front=[], trials=[])
    (run / "record.json").write_text(json.dumps(data))
    assert "not finished" in summary(write_report(run))
    data["finished"] = True
    (run / "record.json").write_text(json.dumps(data))
    assert "none was evaluated" in summary(write_report(run))


def test_why_a_unit_was_left_alone(run):
    from hwprune.report.page import unit_rows

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


def test_the_history_ends_at_one_and_never_falls(run):
    from hwprune.report.page import history

    found = history(read_record(run))
    assert found["volumes"] == sorted(found["volumes"]) and found["volumes"][-1] in (0.0, 1.0)
    assert sum(int(row[1]) for row in found["kinds"]) == len(found["numbers"])
