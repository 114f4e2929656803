"""What must never happen, whatever the files, the disk and the clock do."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import hwprune
from hwprune.errors import HwpruneError, UsageError, WorkloadError
from hwprune.onnx_files import read_onnx
from hwprune.searching.study.store import Store
from hwprune.workload import loading
from tests.conftest import tiny_workload

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "hwprune").rglob("*.py"))


def external(folder, location):
    """A model whose weight lies in another file."""
    tensor = onnx.TensorProto(name="w", dims=[8, 8], data_type=1, data_location=1)
    for key, value in (("location", location), ("offset", "0"), ("length", "256")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", 1, ["n", 8])], [value("y", 1, ["n", 8])], [tensor]
    )
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["above", "absolute", "link"])
def test_weights_of_an_onnx_file_can_not_lie_outside_of_its_folder(tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(64, np.float32).tobytes())
    location = {"above": "../secret", "absolute": str(secret), "link": "link"}[kind]
    path = external(tmp_path / "model", location)
    if kind == "link":
        (path.parent / "link").symlink_to(secret)
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 8), np.float32))
    for read in (lambda: read_onnx(path), lambda: loading.load(f"{path} data={tmp_path / 'd.npz'}")):
        with pytest.raises(WorkloadError, match="can't be read as an ONNX model"):
            read()
    (path.parent / "inside").write_bytes(secret.read_bytes())
    assert len(read_onnx(external(tmp_path / "model", "inside")).graph.initializer[0].raw_data) == 256


def test_no_source_reads_pickles():
    for path in SOURCES:
        text = path.read_text()
        for call in re.findall(r"torch\.load\([^\n]*", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        for call in re.findall(r"np\.load\([^\n]*", text):
            assert "allow_pickle=False" in call, f"{path}: {call}"
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|cloudpickle|shelve|marshal)\b", text, re.M), path
        assert "shell=True" not in text and "os.system(" not in text, path


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch /tmp/hwprune-bomb",))


def test_a_pickled_array_is_refused_and_not_run(tmp_path, finished_run):
    Path("/tmp/hwprune-bomb").unlink(missing_ok=True)
    array = np.empty(4, object)
    array[:] = Bomb()
    np.savez(tmp_path / "d.npz", x=array)
    path = finished_run / "baseline" / "model.onnx"
    with pytest.raises(HwpruneError):
        loading.load(f"{path} data={tmp_path / 'd.npz'}")
    assert not Path("/tmp/hwprune-bomb").exists()


def test_a_second_search_in_a_run_directory_is_refused(tmp_path):
    from hwprune.searching.search import locked

    with locked(tmp_path / "run"), pytest.raises(UsageError, match="another search is working"):
        hwprune.search(tiny_workload(), trials=1, out=tmp_path / "run")
    assert len(hwprune.search(tiny_workload(), trials=1, out=tmp_path / "run").trials) == 1


def test_a_clock_that_jumps_ends_no_search(tmp_path, monkeypatch):
    """An hour back, a day forward: leases and snapshots must not mind."""
    start, calls = time.time(), []

    def jumping():
        calls.append(None)
        return start + [0, -3600, 86400, 5][len(calls) % 4]

    monkeypatch.setattr(time, "time", jumping)
    result = hwprune.search(tiny_workload(), trials=4, out=tmp_path / "run", seed=1)
    assert [t.number for t in result.trials] == sorted({t.number for t in result.trials}) and len(result.trials) == 4
    assert all(t.state == "measured" for t in result.trials)


def test_a_read_only_run_directory_is_read_and_nothing_is_lost_by_trying_to_write(tmp_path, finished_run):
    """What writes into it says so before it has measured anything; what reads works."""
    run, page, export = tmp_path / "archive" / "run", tmp_path / "page", tmp_path / "export"
    shutil.copytree(finished_run, run)
    for path in (run, *run.rglob("*"), run.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    commands = [
        ["search", "demo:digits", "--out", str(run / "inner")], ["report", str(run)],
        ["rerank", str(run), "--target", "cpu"], ["probe", "demo:digits", "--out", str(run / "probe")],
        ["apply", "channel=0.5", "demo:digits", "--out", str(run / "new")],
        ["report", str(run), "--out", str(page)], ["export", str(run), "--max-drop", "1", "--out", str(export)],
    ]  # fmt: skip
    code = (
        "import json, sys; from hwprune.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n    print('EXIT', main(words), file=sys.stderr)\n"
    )
    words = [sys.executable, "-c", code, json.dumps(commands)]
    if os.geteuid() == 0:  # what a folder allows binds root only without these
        rights = "-dac_override,-dac_read_search"
        words = ["setpriv", "--bounding-set", rights, "--inh-caps", rights, *words]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=250)
    told, exits, text = [], [], []
    for line in done.stderr.splitlines():
        if line.startswith("EXIT"):
            exits.append(int(line.split()[1]))
            told.append(" ".join(text))
            text = []
        else:
            text.append(line)
    assert exits == [2, 2, 2, 2, 2, 0, 0], done.stderr[-3000:]
    assert all("can't write into" in one for one in told[:5]), told
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert (page / "report.html").stat().st_size > 1000 and (export / "manifest.json").exists()
    for path in (run.parent, run, *run.rglob("*")):
        path.chmod(0o755)


def test_a_full_disk_is_told_and_the_search_goes_on_afterwards(tmp_path):
    """A limit on the size of files stands for the disk: model files of a few hundred kB don't fit any more."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import hwprune; from tests.conftest import tiny_workload\n"
        "from hwprune.searching.recording import RecordWriter\n"
        "original = RecordWriter.snapshot\n"
        "def after(self, *rest):\n"
        "    original(self, *rest)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "RecordWriter.snapshot = after\n"
        "try:\n    hwprune.search(tiny_workload(), trials=4, out=sys.argv[1], seed=1)\n"
        "except (hwprune.HwpruneError, OSError) as error:\n    print('told:', type(error).__name__, error); sys.exit(7)\n"
    )
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=200)
    assert done.returncode in (0, 7), done.stderr[-2000:]  # told, or every later candidate is a failed trial
    before = {}
    if done.returncode == 7:
        store = Store(Store.default_storage(run), None)
        before = {t.number: t.recipe.choices for t in store.trials()}
        store.close()
        assert before  # what was finished is there
    result = hwprune.search(tiny_workload(), trials=6, out=run, seed=1, resume=True)
    after = {t.number: t.recipe.choices for t in result.trials if t.searched}
    assert len(after) == 6 and before.items() <= after.items()


RESTORED = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
"""A shell starts what runs in its background with SIGINT ignored."""


def finished(run):
    """Number -> recipe of the trials that are in the study."""
    if not (run / "study.db").is_file() or not (run / "job.toml").is_file():
        return {}
    try:
        store = Store(Store.default_storage(run), None)
    except UsageError:  # its tables are just being made
        return {}
    try:
        return {t.number: t.recipe.digest for t in store.trials(as_searched=True)}
    finally:
        store.close()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_in_one_search_lose_nothing(tmp_path):
    """In the set-up, and from a moment to a few seconds after a trial more is finished."""
    run, words = tmp_path / "run", ["tests/workloads.py:slow", "seconds=0.05"]
    command = [sys.executable, "-m", "hwprune.cli.main", "search"]
    draw, seen, in_trials = random.Random(0), {}, 0
    for turn in range(20):
        resumed = ["--resume"] if (run / "job.toml").is_file() else words
        process = subprocess.Popen(
            [*command, *resumed, "--trials", "60", "--seed", "0", "--out", str(run), "--quiet"], stderr=subprocess.DEVNULL
        )
        early = turn % 4 == 3  # before any trial of its own
        end = time.monotonic() + (draw.uniform(2, 6) if early else 90)
        while time.monotonic() < end and process.poll() is None and not (len(finished(run)) > len(seen) and not early):
            time.sleep(0.1)
        if not early:
            time.sleep(draw.uniform(0, 1.5))
        assert process.poll() is None, "the search has come to its end before twenty kills"
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = finished(run)
        assert seen.items() <= now.items(), "a finished trial is gone"
        in_trials += len(now) > len(seen)
        seen = now
    assert in_trials >= 10
    command = [*command, "--resume", "--trials", str(len(seen) + 2), "--out", str(run), "--quiet"]
    assert subprocess.run(command, timeout=600).returncode == 0
    done = finished(run)
    assert seen.items() <= done.items() and len(done) == len(seen) + 2 and len(set(done.values())) == len(done)


@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_search_that_is_told_to_end_says_how_it_goes_on(tmp_path, number):
    """Batch systems and containers send SIGTERM; it means the same as Ctrl-C."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", RESTORED + "from hwprune.cli.main import main; sys.exit(main(sys.argv[1:]))", "search"]
    words = ["tests/workloads.py:slow", "seconds=0.05", "--trials", "60", "--seed", "0", "--out", str(run), "--quiet"]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not finished(run):
        time.sleep(0.1)
    before = finished(run)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert f"hwprune search --resume --out {run}" in told
    assert before and before.items() <= finished(run).items()
