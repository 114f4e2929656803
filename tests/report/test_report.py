"""The report only reads: what it shows comes from record.json, and nothing in there can inject anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from hwprune.errors import UsageError
from hwprune.record import read_record
from hwprune.report.page import write_page
from hwprune.report.text import summary, table
from hwprune.report.writing import write_report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}"


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


@pytest.fixture
def run(finished_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(finished_run / "record.json", folder / "record.json")
    return folder


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
    record["workload"]["name"] = "plain"
    record["notes"] = []
    write_page(record, run / "plain.html")
    return parse(run / "plain.html").tags


def test_picture_is_a_png(run):
    write_report(run)
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")


def test_unfinished_and_empty_runs_have_a_report(run):
    data = json.loads((run / "record.json").read_text())
    data.update(finished=False, front=[], trials=[])
    (run / "record.json").write_text(json.dumps(data))
    assert "not finished" in summary(write_report(run))
    data["finished"] = True
    (run / "record.json").write_text(json.dumps(data))
    assert "none is faster than dense" in summary(write_report(run))


def test_narrow_terminals_lose_columns_not_lines(run):
    record = read_record(run)
    for width in (40, 60, 200):
        lines = summary(record, width).splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip().startswith("speedup"))
        rows = lines[start : start + 2 + len(record["front"])]
        assert len(rows) == 2 + len(record["front"])
        assert all(len(line) <= width for line in rows)


def test_table_aligns():
    assert table(["", "b"], [["x", "10"], ["long", "1"]], 80) == "       b\nx     10\nlong   1"


@pytest.mark.parametrize(
    ("content", "text"), [("[]", "schema 1"), ('{"schema": 2}', "schema 1"), ('{"schema": 1}', "lacks"), ("{", "JSON")]
)
def test_broken_records_say_so(tmp_path, content, text):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UsageError, match=text):
        read_record(tmp_path)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(run, width, tmp_path):
    """No console message, no request, and the script ran to its end (the verdict and the table are filled)."""
    record = write_report(run)
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    log = subprocess.run(
        ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
         "--virtual-time-budget=5000", "--dump-dom", (run / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in log.stderr
    assert "tiny on cpu: 5 candidates" in log.stdout
    for point in record["front"]:
        assert f"trial {point['trial']}" in log.stdout
    assert "js-plotly-plot" in log.stdout
