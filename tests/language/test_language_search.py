"""The search as its user runs it: the front's files are what the table says."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
import transformers

from hwprune.cli import main
from hwprune.cli.arguments import latencies
from hwprune.errors import UsageError
from hwprune.language import front_points, language_search, part_options
from hwprune.language.language_job import LanguageJob
from hwprune.language.language_search import search_language
from hwprune.streaming import road
from hwprune.streaming.phases import Tokens
from hwprune.streaming.plan_file import read_blocks
from hwprune.streaming.static_cache import StaticWriter
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import llama, losses, text, whole


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("a language model")
    llama(place / "model", depth=3, hidden=64, neurons=64, heads=4)
    text(place / "a.txt", 3000)
    text(place / "b.txt", 600, seed=3)
    return place


def words(place, out, *more):
    return [
        "search", f"hf:{place / 'model'}", "--text", f"{place / 'a.txt'},{place / 'b.txt'}", "--length", "16", "--windows", "12",
        "--tokens", "8+4", "--trials", "3", "--points", "1", "--out", str(out), *more,
    ]  # fmt: skip


def test_one_command_is_the_whole_search(place, tmp_path, capsys):
    out = tmp_path / "run"
    assert main.main(words(place, out)) == 0
    told = capsys.readouterr().out
    (row,) = csv.DictReader((out / "front.csv").read_text().splitlines())
    assert f"{float(row['perplexity']):.2f}" in told and f"{float(row['answer_speedup']):.2f}x" in told
    folder = out / row["folder"]
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=True, dtype=torch.float32).eval()
    _, judged = TextData(place / "a.txt", place / "b.txt", length=16).read(place / "model")
    assert float(row["perplexity"]) == pytest.approx(float(losses(model, judged).mean().exp()), rel=1e-4)
    # Branches whose numbers are all zero stand for what is gone: they don't count.
    zeros = {".".join(name.split(".")[:4]) for name, p in model.named_parameters() if not p.any()}
    counted = [p.numel() for name, p in model.named_parameters() if ".".join(name.split(".")[:4]) not in zeros]
    assert int(row["params"]) == sum(counted)
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    past = [node for node in session.get_inputs() if "past" in node.name]
    assert int(row["cache_bytes_per_token"]) == 4 * sum(node.shape[1] * node.shape[3] for node in past)
    assert len(read_blocks(folder / "blocks.json")) == 3
    record = json.loads((out / "record.json").read_text())
    assert record["front"][0]["trial"] == int(row["trial"]) and len(record["trials"]) == 3
    assert int(row["params"]) < 0.95 * record["front"][0]["facts"]["dense_params"]
    assert main.main(words(place, out)) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main.main(words(place, out, "--resume", "--space", "depth")) == 2
    assert "has another space" in capsys.readouterr().err


def test_sizes_are_kept_and_questions_answered(place, tmp_path, capsys):
    """The cache of a token in 32 bits: 3 blocks, 2 groups of 16 keys and 16 values."""
    (tmp_path / "questions.jsonl").write_text('{"prompt": "a b", "choices": ["c", "d e"], "answer": 0}\n' * 2)
    out, most = tmp_path / "run", 4 * 32 * 4
    more = ["--max-cache", f"{most}B", "--max-size", "300kB", "--choices", str(tmp_path / "questions.jsonl")]
    assert main.main(words(place, out, *more)) == 0
    (row,) = csv.DictReader((out / "front.csv").read_text().splitlines())
    assert int(row["cache_bytes_per_token"]) <= most < 3 * 2 * 32 * 4
    assert sum(one.stat().st_size for one in (out / row["folder"] / "onnx").glob("model.onnx*")) <= 300_000
    assert row["right_answers"] in ("0.0", "0.5", "1.0") and "Right answers to 2 questions" in capsys.readouterr().out
    prices = json.loads((out / "record.json").read_text())["prices"]
    assert prices["dense"]["cache"] == 3 * 2 * 32 * 4 and prices["saved"]["cache"]["attention-0"] == 2 * 32 * 4
    assert prices["saved"]["size"]["mlp-0"] == 4 * 3 * 64 * 64


@pytest.mark.slow
def test_weights_of_fewer_bits_may_be_asked_for_when_a_search_has_ended(place, tmp_path, capsys):
    out = tmp_path / "run"
    assert main.main(words(place, out)) == 0
    (row,) = csv.DictReader((out / "front.csv").read_text().splitlines())
    folder = out / row["folder"]
    before = (folder / "onnx" / "model.onnx").stat().st_mtime_ns
    assert main.main(words(place, out, "--resume", "--quantize", "int8")) == 0
    rows = list(csv.DictReader((out / "front.csv").read_text().splitlines()))
    assert [(one["trial"], one["precision"]) for one in rows] == [
        ("dense", "int8"),
        (row["trial"], "fp32"),
        (row["trial"], "int8"),
    ]
    assert (folder / "onnx" / "model.onnx").stat().st_mtime_ns == before
    assert (out / rows[2]["model"]).is_file() and (out / rows[0]["model"]).is_file()
    assert rows[0]["model"] == "candidates/dense/onnx/model.int8.onnx" and "int8" in capsys.readouterr().out


def test_pytorch_is_searched_with_its_own_programs(place, tmp_path, capsys, monkeypatch):
    out, real, refused = tmp_path / "run", StaticWriter.write, []

    def write(self, blocks, path):
        if path.name == "trial.pt2" and not refused:
            refused.append(path)
            raise UsageError("this one can't be exported")
        return real(self, blocks, path)

    monkeypatch.setattr(StaticWriter, "write", write)
    assert main.main(words(place, out, "--target", "cpu-pytorch")) == 0
    (row,) = csv.DictReader((out / "front.csv").read_text().splitlines())
    assert row["model"].endswith("pytorch/model.pt2") and float(row["decode_s"]) > 0
    program, model = torch.export.load(out / row["model"]).module(check_guards=False), whole(out / row["folder"])
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(program(ids, torch.arange(12)), model(ids).logits, rtol=1e-3, atol=1e-3)
    assert "pytorch/model.pt2" in capsys.readouterr().out
    trials = json.loads((out / "record.json").read_text())["trials"]
    assert [one["state"] for one in trials] == ["FAIL", "COMPLETE", "COMPLETE"]  # it costs itself, and not the search


@pytest.mark.slow
def test_a_killed_search_goes_on(place, tmp_path, capsys):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "hwprune.cli.main", *words(place, out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / "work" / "prices.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = (out / "work" / "options.json").stat().st_mtime_ns
    assert main.main(words(place, out, "--resume")) == 0
    assert (out / "work" / "options.json").stat().st_mtime_ns == before
    assert (out / "front.csv").is_file()


@pytest.mark.slow
def test_what_is_delivered_keeps_the_limit(tmp_path, capsys):
    """Judged by hand on the windows that trials are held against; where nothing keeps it, nothing is delivered.

    The model has learned the text: one of random weights gains by what is cut.
    """
    place, source, more = tmp_path, tmp_path / "model", ("--trials", "8", "--points", "2")
    llama(source, depth=3, hidden=64, neurons=64, heads=4)
    text(place / "a.txt", 3000)
    text(place / "b.txt", 600, seed=3)
    model, ids = whole(source).train(), TextData(place / "a.txt", None, 16).to_learn(source)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    model.eval().save_pretrained(str(source))

    def rises(out):
        job = json.loads((out / "language.json").read_text())
        data = TextData(Path(job["data"]["calibration"]), None, job["data"]["length"], job["data"]["most"])
        held = language_search._divided(data.read(source)[0], data.between(source)).held
        rows = list(csv.DictReader((out / "front.csv").read_text().splitlines()))
        found = [transformers.AutoModelForCausalLM.from_pretrained(out / row["folder"], trust_remote_code=True) for row in rows]
        assert {path.name for path in (out / "candidates").iterdir()} == {row["trial"] for row in rows}
        dense = losses(whole(source), held).mean()
        return [float(torch.expm1(losses(model.eval(), held).mean() - dense)) for model in found]

    assert main.main(words(place, tmp_path / "run", *more, "--max-drop", "1000%")) == 0
    assert "--max-drop 1000.0 %: trial" in capsys.readouterr().out
    found = rises(tmp_path / "run")
    assert found and min(found) > 0.01 and max(found) <= 10
    assert main.main(words(place, tmp_path / "none", *more, "--max-drop", "1%")) == 1
    assert "no model keeps the limits (before repair the least cut one is" in capsys.readouterr().err
    assert not (tmp_path / "none" / "candidates").exists()


@pytest.mark.slow
@pytest.mark.parametrize("space", ["uniform", "deci", "depth"])
def test_spaces_end_in_folders_of_their_kind(tmp_path, space):
    out = tmp_path / "run"
    llama(tmp_path / "model", depth=3, hidden=64, neurons=256, heads=4)  # of fewer neurons none is worth its time
    text(tmp_path / "a.txt", 3000)
    text(tmp_path / "b.txt", 600, seed=3)
    assert main.main(words(tmp_path, out, "--space", space)) == 0
    (row,) = csv.DictReader((out / "front.csv").read_text().splitlines())
    config = json.loads((out / row["folder"] / "config.json").read_text())
    assert config["architectures"] == (["DeciLMForCausalLM"] if space == "deci" and "uneven" in config else ["LlamaForCausalLM"])
    if space == "uniform":
        assert not list((out / row["folder"]).glob("*.py"))


def test_points_are_spread_over_what_is_of_use():
    front = [SimpleNamespace(values=(0.05 * n, 1 + 0.1 * n)) for n in range(1, 30)]
    found = [one.values[1] for one in front_points.spread(front, 3)]
    assert found == pytest.approx([1.4, 2.1, 3.0])  # cube roots of 3 apart, none beyond 1 nat
    assert front_points.spread(front[:2], 3) == front[:2]
    # One that is slower by what a measurement is off, and better by next to nothing, is no point.
    lucky = [*front[:12], SimpleNamespace(values=(0.89, 2.2001)), *front[13:]]
    lucky[3] = SimpleNamespace(values=(0.249, 1.4))
    assert all(one.values[0] not in (0.89, 0.249) for one in front_points.spread(lucky, 3))
    ruined = [SimpleNamespace(values=(5.0, 1.1)), SimpleNamespace(values=(6.0, 1.2))]
    assert front_points.spread(ruined, 3) == ruined[:1] and front_points.spread([], 3) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-latency", "2ms"], "prefill=200ms,decode=30ms"),
        (["--max-drop", "0"], "what perplexity may rise by: 2, or 10%"),
        (["--time", "20m"], "takes no --time"),
        (["--target", "cpu-pytorch", "--quantize", "int8"], "--quantize writes ONNX files, which cpu-pytorch does not run"),
        (["--target", "orin"], "orin can't be measured here"),
        (["--space", "dfault"], "--space of a language model is one of"),
        (["--length", "450"], "needs at least 7"),
    ],
)
def test_what_can_not_be_done_is_one_message(place, tmp_path, capsys, more, message):
    assert main.main(words(place, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_told_before_anything_is_solved(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(part_options.shutil, "disk_usage", lambda _place: SimpleNamespace(free=20_000))
    monkeypatch.setattr(language_search, "solve_options", None)
    assert main.main(words(place, tmp_path / "run")) == 2
    assert "20.0 kB are free" in capsys.readouterr().err


def tokens_in(*parts):
    return [int(token) for part in parts for token in part.flatten()]


def test_every_window_has_one_purpose_and_what_calibrates_is_all_there(place):
    data = TextData(place / "a.txt", place / "b.txt", length=16, most=12)
    calibration, _ = data.read(place / "model")
    everything = data.to_learn(place / "model")
    numbered = torch.arange(len(everything) * 16).view(len(everything), 16)
    places = [int((everything == one).all(1).nonzero()[0]) for one in calibration]
    between = data.between(place / "model")
    others = [n for n in range(len(everything)) if n not in places]
    assert torch.equal(between, everything[others]) and len(calibration) == 12
    texts = language_search._divided(numbered[places], numbered[others])
    assert torch.equal(texts.fitted, numbered[places]) and texts.held.shape == (4, 16) and texts.looked.shape[1:] == (32, 16)
    told = tokens_in(texts.fitted, texts.held, texts.looked)
    assert len(told) == len(set(told))
    # A text with nothing between: its own windows are divided.
    few = language_search._divided(numbered[:12], numbered[:0])
    told = tokens_in(few.fitted, few.held, few.looked)
    assert len(told) == len(set(told)) and len(few.held) == 2 and len(few.looked[0]) == 4 and len(few.fitted) == 6


def test_limits_of_phases_are_read(capsys):
    assert latencies("prefill=200ms,decode=0.03s") == {"prefill": 0.2, "decode": 0.03} and latencies("2ms") == 0.002
    with pytest.raises(argparse.ArgumentTypeError, match="write prefill=200ms"):
        latencies("prefil=200ms")
    assert main.main(["search", "demo:digits", "--tokens", "8+4"]) == 2
    assert "are for hf:FOLDER of a language model" in capsys.readouterr().err


def test_an_uneven_model_is_not_searched_again(place, tmp_path):
    data = TextData(place / "a.txt", None, length=16, most=8, judged=4)
    road.prune_folder(place / "model", data, SweepPlan((), "l2", "none", by_block=({"neuron": 0.5}, {}, {})), tmp_path / "uneven")
    with pytest.raises(UsageError, match="search from the dense model"):
        search_language(LanguageJob(tmp_path / "uneven", data, Tokens(8, 4)), tmp_path / "run")
