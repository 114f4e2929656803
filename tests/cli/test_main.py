"""The command line as a user meets it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from hwprune.cli.arguments import seconds, size
from hwprune.cli.main import COMMANDS, main
from tests.searching.test_session import ROOT, cli


def run(capsys, *arguments):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_loads_no_heavy_package():
    code = (
        "import sys; from hwprune.cli.main import build_parser; build_parser().format_help();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'optuna', 'pandas', 'numpy', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert command in out


def test_launcher_of_a_checkout_works():
    found = subprocess.run([sys.executable, "cli.py", "targets"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "a100" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["search", "demo:digitz"], "digits"),
        (["search", "--target", "a10000"], "a100"),
        (["search", "--space", "defualt"], "default"),
        (["search", "--sampler", "tpee"], "tpe"),
        (["search", "--trials", "0"], "trials"),
        (["search", "--recover", "distill:two"], "number of epochs"),
        (["search", "--resume"], "--out"),
        (["search", "--resume", "--out", "/no/such/run"], "no run to resume"),
        (["search", "nonsense"], "Forms"),
        (["search", "nofile.py:f"], "there is no file nofile.py"),
        (["search", "no_such_module_x:f"], "no module"),
        (["search", "tests/workloads.py:goood"], "it has: "),
        (["search", "tests/workloads.py:good", "colour=red"], "can't be called"),
        (["search", "tests/workloads.py:good", "red"], "key=value"),
        (["search", "tests/workloads.py:raises"], "RuntimeError.*line .*no weights today"),
        (["search", "tests/workloads.py:wrong_type"], "must return a hwprune.Workload, got dict"),
        (["inspect", "demo:digits", "x=1"], "takes no arguments"),
        (["report", "/no/such/run"], "no record.json"),
        (["export", "/no/such/run", "--out", "x"], "no record.json"),
        (["export", "/no/such/run", "--out", "x", "--format", "onxx"], "onnx"),
        (["verify", "/no/such/dir"], "neither manifest.json"),
        (["apply", "/no/recipe.json", "demo:digits", "--out", "x"], "No such file"),
        (["apply", "foo=0.5", "demo:digits", "--out", "x"], "unknown pattern 'foo'"),
        (["apply", "channel=half", "demo:digits", "--out", "x"], "must be a number"),
        (["apply", "channel=2", "tests/workloads.py:good", "--out", "x"], r"in \(0, 1\), got 2"),
        (["apply", "channel", "tests/workloads.py:good", "--out", "x"], "needs a sparsity"),
        (["apply", "unstructured=0.5,2:4", "tests/workloads.py:good", "--out", "x"], "two patterns choose"),
        (["apply", "channel=0.5", "tests/workloads.py:good", "--out", "x", "--compensation", "magic"], "unknown compensation"),
        (["apply", "channel=0.5", "tests/workloads.py:good", "--out", "x", "--criterion", "l3"], "unknown method 'l3'"),
    ],
)
def test_wrong_usage_says_what_to_do(capsys, monkeypatch, arguments, text):
    import re

    monkeypatch.chdir(ROOT)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert re.search(text, err, re.DOTALL), err


def test_absent_target_tells_three_ways_on(capsys):
    code, _, err = run(capsys, "search", "--target", "a100")
    assert code == 2
    assert "no NVIDIA GPU" in err or "its GPU is" in err
    for number in ("1.", "2.", "3."):
        assert number in err


@pytest.mark.parametrize(("name", "text"), [("empty", "is empty"), ("nan_model", "NaN")])
def test_broken_workloads_end_with_two(tmp_path, name, text):
    found = cli("search", f"tests/workloads.py:{name}", "--out", str(tmp_path / "run"), "--trials", "2")
    assert found.returncode == 2
    assert text in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("kind", ["targets", "spaces", "criteria", "patterns", "samplers"])
def test_lists(capsys, kind):
    code, out, _ = run(capsys, kind)
    assert code == 0
    assert len(out.splitlines()) >= 3
    code, out, _ = run(capsys, kind, "--json")
    assert all(set(row) == {"name", "text"} for row in json.loads(out))


def test_doctor(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "onnxruntime" in out


def test_inspect(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = run(capsys, "inspect", "tests/workloads.py:good")
    assert code == 0
    assert "conv1.weight:0" in out
    assert "model output" in out
    code, out, _ = run(capsys, "inspect", "tests/workloads.py:good", "--json")
    axes = {axis["name"]: axis for axis in json.loads(out)["axes"]}
    assert ["conv2.weight", 1] in axes["conv1.weight:0"]["members"]


def test_report_writes_the_same_files_again(capsys, finished_run):
    before = {name: (finished_run / name).read_bytes() for name in ("front.csv", "trials.csv", "report.html")}
    code, out, _ = run(capsys, "report", str(finished_run))
    assert code == 0
    assert "tiny on cpu: 5 candidates" in out
    assert {name: (finished_run / name).read_bytes() for name in before} == before


def test_apply_repeats_a_point_of_the_front(capsys, monkeypatch, finished_run, tmp_path):
    monkeypatch.chdir(ROOT)
    recipe = next(iter(sorted((finished_run / "candidates").iterdir()))) / "recipe.json"
    out = tmp_path / "applied"
    code, text, _ = run(capsys, "apply", str(recipe), "tests/workloads.py:good", "--out", str(out), "--json")
    assert code == 0
    facts = json.loads(text)
    assert facts["stored_decisions"] is True
    assert facts["cut_difference"] <= 1e-5
    assert (out / "model.onnx").read_bytes() == (recipe.parent / "model.onnx").read_bytes()
    assert run(capsys, "apply", str(recipe), "tests/workloads.py:good", "--out", str(out))[0] == 2  # the folder is used


def test_apply_the_same_everywhere(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    arguments = [
        "apply",
        "channel=0.5,2:4",
        "tests/workloads.py:good",
        "--out",
        str(out),
        "--json",
        "--score",
        "--database",
        str(tmp_path / "db"),
    ]
    code, text, _ = run(capsys, *arguments)
    facts = json.loads(text)
    assert code == 0
    assert facts["params"] < facts["dense_params"]
    assert facts["zeros"] > 0
    assert facts["compensation"] == "obs+batchnorm"
    assert facts["dense_metric"] == 1.0  # agreement with itself
    assert (out / "model.onnx").is_file()
    assert list((tmp_path / "db").rglob("*.safetensors"))
    code, text, _ = run(capsys, "apply", str(out / "recipe.json"), "tests/workloads.py:good", "--out", str(tmp_path / "again"))
    assert code == 0
    assert "with its stored decisions" in text


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_times(text, value):
    assert seconds(text) == value


def test_sizes():
    assert size("4GB") == 4_000_000_000
    with pytest.raises(Exception, match="4GB"):
        size("four")


def test_a_search_without_a_result_fails_with_the_reason(tmp_path, capsys):
    """Nothing is 1000 times as fast; what was found out stays, and can be read."""
    out = tmp_path / "run"
    words = ["tests/workloads.py:good", "--trials", "2", "--space", "structured", "--min-speedup", "1000", "--out", str(out)]
    code, told, err = run(capsys, "search", *words, "--json")
    assert code == 1
    assert json.loads(told)["front"] == []
    assert "the front is empty: none is faster than dense" in err and "--trials" in err and str(out) in err
    assert (out / "report.html").is_file() and json.loads((out / "record.json").read_text())["finished"]
    code, _, err = run(capsys, "report", str(out))
    assert code == 0


def test_a_full_disk_is_named(capsys, monkeypatch, tmp_path):
    from hwprune.cli import doctor_command

    def full(_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "run" / "record.json"))

    monkeypatch.setattr(doctor_command, "run", full)
    code, _, told = run(capsys, "doctor")
    assert code == 1
    assert f"the disk that holds {tmp_path} (" in told
    assert "--resume" in told
    monkeypatch.setattr(doctor_command, "run", lambda _options: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    code, _, told = run(capsys, "doctor")
    assert code == 1
    assert "is full" in told
    assert "TMPDIR" in told


def test_a_terminal_that_knows_ascii_alone():
    done = subprocess.run(
        [sys.executable, "-m", "hwprune.cli.main", "inspect", "demo:digits"], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"axes can be cut" in done.stdout
