"""The report only reads: what it shows comes from record.json, and nothing in there can inject anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from hwprune.records.record import read_record
from hwprune.report.page import page_data, write_page
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


def test_the_page_is_small_and_has_the_command_with_the_real_path(run):
    write_report(run)
    text = (run / "report.html").read_text()
    assert len(text) < 500_000
    data = page_data(read_record(run), run)
    point = data["front"][data["chosen"]]
    assert point["command"] == f"hwprune export {run} --trial {point['trial']} --out deploy"
    assert page_data(read_record(run), run.with_name("my run"))["front"][0]["command"].startswith("hwprune export '")


def test_the_heroes_are_the_points_own_numbers(run):
    record = read_record(run)
    point = record.data["front"][0]
    point["speedup"].update(value=1.942, ci_low=1.9, ci_high=2.05)
    point["metric"]["value"], point["drop"], point["size_bytes"] = 0.948, 0.022, 120_800
    point["paired_drop"] = {"value": 0.022, "unit": "top1", "ci_low": 0.01, "ci_high": 0.034}
    record.dense_metric["value"] = 0.97
    record.data["baseline"]["size_bytes"] = 621_000
    hero = page_data(record, run)["front"][0]["hero"]
    assert hero["speedup"] == "1.94x" and "between 1.90x and 2.05x" in hero["speedup_note"]
    assert hero["metric"] == "97.0 % → 94.8 %" and hero["metric_note"] == "drop 2.2 points (95 %: 1 to 3.4)"
    assert hero["size"] == "621 kB → 121 kB" and hero["size_note"].startswith("5.1x smaller")


def test_a_gain_is_called_one_and_other_metrics_keep_their_unit(run):
    record = read_record(run)
    point = record.data["front"][0]
    point["drop"] = -0.004
    point["paired_drop"] = {"value": -0.004, "unit": "top1", "ci_low": -0.01, "ci_high": 0.002}
    assert page_data(record, run)["front"][0]["hero"]["metric_note"] == "gain 0.4 points (95 %: -0.2 to 1)"
    record.dense_metric["value"] = 12.5  # a perplexity, or the like
    record.data["workload"]["higher_is_better"] = False
    data = page_data(record, run)
    assert not data["percent"] and not data["higher"]
    assert data["front"][0]["hero"]["metric"].startswith("12.5 → ")


def test_only_what_must_be_read_first_stands_out(run):
    record = read_record(run)
    record.data["notes"] = ["1 of 9 finalists left the front.", "PREDICTED, NOT MEASURED: latencies come from a table."]
    data = page_data(record, run)
    assert data["wrong"] == ["PREDICTED, NOT MEASURED: latencies come from a table."]
    assert data["notes"] == ["1 of 9 finalists left the front."]


def test_tips_tell_the_split_that_the_picture_shows(run):
    data = page_data(read_record(run), run)
    for point in data["front"]:
        assert f"on {point['split']}" in point["tip"] and "on validation" in point["searched"]["tip"]
    assert all("on validation" in trial["tip"] for trial in data["trials"])
    numbers = {point["trial"] for point in data["front"]}
    assert len(data["trials"]) + len(numbers) == sum(row[2]["key"] == "measured" for row in data["candidates"])


def test_what_was_scored_on_validation_is_not_called_unseen(run):
    record = read_record(run)
    assert "the search never saw" in page_data(record, run)["legend"]
    record.data["front"][0]["split"] = "validation"
    assert "which the search chose by" in page_data(record, run)["legend"]
    record.data["front"].clear()
    record.data["baseline"]["test_metric"] = None
    empty = page_data(record, run)
    assert empty["split"] == "validation" and "never saw" not in empty["legend"]
