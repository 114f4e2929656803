"""hwprune init, --job and completion."""

import ast
import shutil
import subprocess
import sys

import pytest

from hwprune.cli.init_command import KINDS
from hwprune.cli.main import main
from hwprune.searching.job import Job


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_a_job_and_a_module(tmp_path, kind, capsys):
    folder = tmp_path / "mine"
    assert main(["init", str(folder), "--kind", kind]) == 0
    out = capsys.readouterr().out
    assert "workload.py" in out and f"hwprune search --job {folder}/job.toml" in out
    job = Job.read_file(folder / "job.toml")
    assert job.workload == ("model.onnx data=workload.py:data" if kind == "onnx" else "workload.py:workload")
    assert (job.trials, job.sampler, job.target) == (60, "knapsack", "cpu")
    names = {node.name for node in ast.parse((folder / "workload.py").read_text()).body if isinstance(node, ast.FunctionDef)}
    assert ("data" if kind == "onnx" else "workload") in names
    assert main(["init", str(folder)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["init", str(folder), "--force"]) == 0


def test_the_template_runs_as_it_is(tmp_path, capsys):
    assert main(["init", str(tmp_path)]) == 0
    assert main(["inspect", f"{tmp_path}/workload.py:workload"]) == 0
    assert "2 axes can be cut" in capsys.readouterr().out


def test_a_job_is_searched_and_words_count_more(tmp_path, monkeypatch, capsys):
    from hwprune.searching import search

    asked = []

    class Enough(Exception):
        pass

    def run_job(job, workload, *rest, **options):
        asked.append((job.job, workload))
        raise Enough

    monkeypatch.setattr(search, "run_job", run_job)
    main(["init", str(tmp_path / "mine")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Enough):
        main(["search", "--job", "mine/job.toml", "--trials", "7", "--max-drop", "0.02", "--quiet", "--out", "run"])
    job, workload = asked[0]
    assert (job.trials, job.max_drop, job.sampler, job.workload) == (7, 0.02, "knapsack", "mine/workload.py:workload")
    assert workload().name == "my-model"  # loaded after the job was written
    assert main(["search", "--job", "mine/job.toml", "--resume", "--out", "run"]) == 2
    (tmp_path / "mine" / "job.toml").write_text('schema = 1\ntrails = 3\nsampler = "knapsack"\nspace = 5\n')
    assert main(["search", "--job", "mine/job.toml", "--out", "run"]) == 2
    told = capsys.readouterr().err
    assert "trails" in told and "space" in told  # all faults at once


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_all_commands(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("search", "rerank", "--max-drop"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_accepts_the_script(tmp_path):
    made = subprocess.run([sys.executable, "-m", "hwprune.cli.main", "completion", "bash"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (tmp_path / "c.sh").write_text(made.stdout)
    assert subprocess.run(["bash", "-n", tmp_path / "c.sh"]).returncode == 0
