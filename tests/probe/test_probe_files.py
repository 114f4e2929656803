"""The probe's page: names for people, and rows that can be read on a phone."""

from __future__ import annotations

import re

from hwprune.probe.findings import PatternProbe, Probe, Step, UnitProbe
from hwprune.probe.probe_files import page, text

EVIL = "<script>alert(1)</script>"


def probe(label):
    steps = tuple(Step(keep, 1e-6 * keep, 1e-7, 64 / keep, "measured") for keep in (16, 32, 64))
    found = Probe("net", "cpu", "measured", {"device": "x"}, 1e-3, 1e-5, 16, {})
    found.units = [UnitProbe("body.0.conv1.weight:0", "channel", 64, 0.5, steps, None, label=label)]
    found.patterns = [PatternProbe("channel", "half", {"value": 2.0, "ci_low": 1.9, "ci_high": 2.1}, "faster")]
    return found


def test_units_have_their_names_for_people():
    found = probe("body.0.conv1: channels")
    assert "body.0.conv1: channels" in text(found) and "weight:0" not in text(found)
    assert "body.<wbr>0.<wbr>conv1: channels" in page(found)  # it breaks behind dots, not within words
    assert "body.0.conv1.weight:0" in text(probe(""))  # files of earlier versions have no label


def test_each_cell_says_what_it_is():
    """On narrow screens a row is a block, and its header is gone."""
    rows = re.findall(r"<tr><th scope=.row.>.*?</tr>", page(probe("a")))
    cells = [re.findall(r'<td data-label="([^"]+)"', row) for row in rows]
    assert cells[0] == ["speedup", "verdict", "what was imposed"]
    assert cells[1][:3] == ["role", "size", "share of time"]
    assert all(row.count("<td") == len(names) for row, names in zip(rows, cells, strict=True))


def test_names_can_not_inject():
    assert EVIL not in page(probe(EVIL))
