"""The staircases of several targets on one page."""

from __future__ import annotations

from hwprune.probe import together
from hwprune.probe.findings import Probe, Step, UnitProbe


def probe(target: str, times: dict[int, float], share: float = 0.5) -> Probe:
    steps = tuple(Step(count, seconds, 0.0, 1.0, "measured") for count, seconds in times.items())
    unit = UnitProbe("conv<1>", "channel", 64, share, steps, None)
    return Probe("net", target, "measured", {}, 1e-3, 1e-5, 16, {}, units=[unit])


BLOCKS = probe("blocks", {16: 1.0, 32: 2.0, 41: 3.1, 48: 3.0, 64: 4.0})
SMOOTH = probe("smooth", {16: 1.0, 32: 2.0, 41: 2.6, 48: 3.0, 64: 4.0}, share=0.9)


def test_sizes_that_are_good_everywhere():
    units = [one.units[0] for one in (BLOCKS, SMOOTH)]
    assert together.good_everywhere(units) == [64, 48, 32, 16]
    assert together.good_everywhere(units[1:]) == [64, 48, 41, 32, 16]


def test_who_is_hurt_is_said():
    slow = probe("slow", {16: 1.0, 32: 2.0, 41: 3.4, 48: 3.0, 64: 4.0})
    assert together.hurt([slow, SMOOTH], "conv<1>") == ["41 of 48: slower on slow, faster on smooth"]
    assert together.hurt([BLOCKS, BLOCKS], "conv<1>") == []


def test_units_that_one_target_lacks_are_left_out():
    empty = Probe("net", "empty", "measured", {}, 1e-3, 1e-5, 1, {})
    assert together.shared_units([BLOCKS, SMOOTH]) == ["conv<1>"]
    assert together.shared_units([BLOCKS, empty]) == []
    assert "net on 2 targets" in together.text([BLOCKS, empty], 100)
    assert "<img" not in together.page([BLOCKS, empty])


def test_page_is_escaped_and_whole():
    page = together.page([BLOCKS, SMOOTH])
    assert "conv&lt;1&gt;" in page
    assert "conv<1>" not in page
    assert page.startswith("<!doctype html>")
    assert 'href="blocks/probe.html"' in page
    assert together.rows([BLOCKS, SMOOTH])[2] == ["conv<1>", "64, 48, 32, 16", "64, 48, 41, 32, 16", "64, 48, 32, 16"]
