"""The roofline in closed form."""

from __future__ import annotations

import pytest
import torch

from hwprune.errors import UsageError
from hwprune.latency.roofline import Roofline
from hwprune.latency.splitting import split
from hwprune.onnx_files import to_onnx
from hwprune.records import target as targets
from tests.latency.helpers import PROFILE


def linear(rows, columns, inner, tmp_path):
    import onnx

    path = to_onnx.to_onnx(torch.nn.Linear(inner, columns).eval(), (torch.randn(rows, inner),), tmp_path / "model.onnx")
    return split(onnx.load(str(path)), [(rows, inner)])[0]


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "waves"),
    [
        (64, 64, 64, 1), (64, 65, 64, 1), (640, 64, 64, 1),  # ten tiles fit into one wave of ten multiprocessors
        (641, 64, 64, 2), (640, 640, 64, 10), (640, 641, 64, 11),
    ],
)  # fmt: skip
def test_tiles_and_waves_in_closed_form(device, tmp_path, rows, columns, inner, waves):
    found = Roofline(device).segment(linear(rows, columns, inner, tmp_path))
    per_wave = 2 * 64 * 64 * inner / (1e12 / 10)
    assert found.compute_s == pytest.approx(waves * per_wave, rel=1e-9)
    moved = 2 * (rows * inner + rows * columns + columns * inner + columns)
    assert found.memory_s == pytest.approx(moved / 1e11, rel=1e-9)
    assert found.seconds == pytest.approx(max(found.compute_s, found.memory_s) + 1e-6, rel=1e-9)
    assert found.bound in ("launch", "compute", "memory")


def test_cutting_less_than_a_tile_gains_nothing_and_a_tile_does(device, tmp_path):
    roofline = Roofline(device)
    full, less, tile = (roofline.segment(linear(640, n, 4096, tmp_path)).compute_s for n in (640, 600, 576))
    assert less == full
    assert tile < full


def test_profile_without_roofline_can_not_be_estimated():
    with pytest.raises(UsageError, match=r"\[roofline\] lacks fp32_flops"):
        Roofline(targets.load("cpu"))


@pytest.mark.parametrize("name", [n for n in targets.names() if targets.load(n).roofline])
def test_every_profile_with_a_roofline_estimates_and_names_sources(name, tmp_path):
    target = targets.load(name)
    assert all(len(entry["source"]) > 5 for entry in target.roofline.values())
    small, large = (Roofline(target).segment(linear(64, n, 512, tmp_path)).seconds for n in (64, 8192))
    assert 0 < small < large


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('fp16_flop = { value = 1e12, source = "s" }', "did you mean fp16_flops"),
        ("fp16_flops = 1e12", "must be {value = ..., source ="),
        ('fp16_flops = { value = 1e12, source = "" }', "must be {value"),
        ('fp16_flops = { value = -1, source = "s" }', "must be a number > 0"),
        ('tiles = { value = [[64, 64]], source = "s" }', "rows, columns, inner"),
    ],
)
def test_faults_of_a_roofline_are_told(tmp_path, line, wanted):
    start = PROFILE[: PROFILE.index("[roofline]")]
    (tmp_path / "p.toml").write_text(f"{start}[roofline]\n{line}\n")
    with pytest.raises(UsageError) as caught:
        targets.load(str(tmp_path / "p.toml"))
    assert wanted in str(caught.value)
