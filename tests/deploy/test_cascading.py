"""`hwprune cascade`: what is delivered, computed again by hand, and what can't be made."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import onnxruntime
import pytest

import hwprune
from hwprune.cli.main import main
from hwprune.deploy import cascade_files, cascade_models, cascade_writing, cascading, early_exits
from hwprune.deploy.cascade_choice import Wish
from hwprune.errors import UsageError
from hwprune.records.record import read_record
from hwprune.report import cascade_page, writing
from hwprune.workload import demos

QUICK = ((cascade_files, "PROCESSES", 1), (cascade_files, "LIMIT_S", 0.2), (cascade_models, "FIRST_LOOK_S", 0.2))


def _runner(out):
    """The delivered runner, as a module of its own."""
    loaded = importlib.util.spec_from_file_location("run_cascade", out / cascade_writing.RUNNER)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module


def _inputs(out):
    """All examples, and their labels."""
    samples = np.load(out / "samples.npz", allow_pickle=False)
    batches = sorted({name.split(".")[0] for name in samples.files})
    return tuple(np.concatenate([samples[f"{batch}.{kind}"] for batch in batches]) for kind in ("input0", "target"))


@pytest.fixture(scope="module")
def unsure_run(tmp_path_factory):
    """A search on digits, whose models are unsure of some."""
    out = tmp_path_factory.mktemp("unsure") / "run"
    hwprune.search(demos.get("digits"), trials=3, out=out, seed=0)
    return out


@pytest.fixture(scope="module")
def delivered(unsure_run, tmp_path_factory):
    """A cascade of the run, with few and short measurements."""
    out = tmp_path_factory.mktemp("cascade") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade_files, "PROCESSES", 2)
        patch.setattr(cascade_files, "LIMIT_S", 0.5)
        patch.setattr(cascade_models, "FIRST_LOOK_S", 0.3)
        return cascading.cascade(unsure_run, out, Wish(max_drop=0.2)), out


def test_the_told_accuracies_are_those_of_the_files_by_hand(delivered):
    result, out = delivered
    x, y = _inputs(out)

    def right(file):
        session = onnxruntime.InferenceSession(str(out / file))
        name = session.get_inputs()[0].name
        return np.mean([session.run(None, {name: x[i : i + 1]})[0].argmax() == y[i] for i in range(len(x))])

    runner = _runner(out).Cascade(out)
    (outputs,) = runner.run([x])
    told = {name: system.metric.value for name, system in result.systems.items()}
    assert (outputs.argmax(1) == y).mean() == pytest.approx(told["cascade"])
    assert 1 - runner.gone_on == pytest.approx(result.exits.value)
    assert right("dense.onnx") == pytest.approx(told["dense"])
    assert result.without_one_file is None and right("model.onnx") == pytest.approx(told["one file"])
    assert result.systems["dense"].drop.value == 0 and result.split == "test"
    facts = json.loads((out / "cascade.json").read_text())
    assert facts["systems"]["cascade"]["metric"]["value"] == told["cascade"] and facts["deploy"] in ("cascade", "one file")
    assert result.deploy == min(("cascade", "one file"), key=lambda name: result.systems[name].latency.mean.value)


def test_an_early_exit_is_one_model_divided(unsure_run, finished_run, tmp_path, capsys, monkeypatch):
    """The halves and the one file give exactly what the whole model gives where an example goes on."""
    for module, name, value in (*QUICK, (early_exits, "SHARES", (0.5,))):
        monkeypatch.setattr(module, name, value)
    out = tmp_path / "out"
    result = cascading.cascade(unsure_run, out, Wish(max_drop=0.2), workload=demos.get("digits"))
    assert result.plan.second == f"{result.plan.first} rest" and result.without_one_file is None
    assert "of its work" in cascade_page.named(result.plan.first) and cascade_page.named(result.plan.second) == "the rest"
    facts = json.loads((out / "cascade.json").read_text())
    x = _inputs(out)[0]
    sessions = {name: onnxruntime.InferenceSession(str(out / f"{name}.onnx")) for name in ("answer", "whole", "model")}
    found = {
        name: np.concatenate([s.run(None, {s.get_inputs()[0].name: one[None]})[0] for one in x]) for name, s in sessions.items()
    }
    for threshold in (facts["decision"]["threshold"], 0.0, 2.0):
        sure = _runner(out).ExitRule({**facts["decision"], "threshold": threshold}).sure([found["answer"]])
        wanted = np.where(sure[:, None], found["answer"], found["whole"])
        if threshold == facts["decision"]["threshold"]:
            assert found["model"] == pytest.approx(wanted, abs=1e-5)
        runner = _runner(out).Cascade(out)
        runner.decision.threshold = threshold
        (answers,) = runner.run([x])
        assert answers == pytest.approx(wanted, abs=1e-4) and runner.gone_on == pytest.approx(1 - sure.mean())
    main(["verify", str(out)])
    text = capsys.readouterr().out
    assert "FAILED  branches" not in text and "  branches" in text and "ok      metric" in text
    assert main(["cascade", str(finished_run), "--exits", "--pair", "1,dense"]) == 2
    assert main(["cascade", str(finished_run), "--exits"]) == 2
    assert "live Python object" in capsys.readouterr().err


def test_verify_runs_both_branches_and_sees_what_changed(delivered, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cascade_files, "PROCESSES", 2)
    monkeypatch.setattr(cascade_files, "LIMIT_S", 0.3)
    _, out = delivered
    main(["verify", str(out)])
    text = capsys.readouterr().out
    assert (
        "ok      integrity" in text
        and "FAILED  branches" not in text
        and "  branches" in text
        and "ok      metric" in text
        and "in the mean, recorded" in text
    )
    broken = shutil.copytree(out, tmp_path / "broken")
    facts = json.loads((broken / "cascade.json").read_text())
    facts["decision"]["threshold"] = 2.0  # the one file still has the old one
    (broken / "cascade.json").write_text(json.dumps(facts))
    assert main(["verify", str(broken)]) == 1
    assert "FAILED  branches" in capsys.readouterr().out
    (broken / "second.onnx").write_bytes(b"not a model")
    assert main(["verify", str(broken)]) == 1
    assert "second.onnx missing or changed" in capsys.readouterr().out


def test_the_command_tells_and_draws(unsure_run, tmp_path, capsys, monkeypatch):
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)
    trial = read_record(unsure_run).front[-1].trial
    out = tmp_path / "out"
    assert main(["cascade", str(unsure_run), "--pair", f"{trial},dense", "--max-drop", "0.5", "--out", str(out), "-q"]) == 0
    text = capsys.readouterr().out
    assert f"trial {trial} first; dense where it is less than" in text and "end at the first model" in text
    assert "mean speedup" in text and (out / "cascade.png").stat().st_size > 10_000
    assert main(["cascade", str(unsure_run), "--min-speedup", "1.01", "--out", str(out), "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_the_run_s_report_shows_it(delivered, unsure_run, tmp_path, capsys):
    run = shutil.copytree(unsure_run, tmp_path / "run")
    writing.write_report(run)
    assert '"cascade": null' in (run / "report.html").read_text()
    out = shutil.copytree(delivered[1], run / "cascade")
    cascade_page.write(delivered[0], out)
    writing.write_report(run)
    page = (run / "report.html").read_text()
    assert cascade_page.verdict(delivered[0]) in page and "data:image/png;base64," in page
    assert all(row[0] in page and row[-1] in page for row in cascade_page.rows(delivered[0]))


def test_an_interrupted_one_leaves_nothing_and_keeps_the_one_before(unsure_run, delivered, tmp_path, monkeypatch):
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)
    out = shutil.copytree(delivered[1], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*_arguments, **_options):
        assert (tmp_path / ".out.part" / "first.onnx").is_file()  # in the middle
        raise KeyboardInterrupt

    monkeypatch.setattr(cascading, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cascading.cascade(unsure_run, out, Wish(max_drop=0.2))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not list(tmp_path.glob(".out*"))


def test_a_model_that_is_always_sure_needs_no_second_one(finished_run, tmp_path, capsys, monkeypatch):
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)
    assert main(["cascade", str(finished_run), "--max-drop", "0.5", "--out", str(tmp_path / "out"), "-q"]) == 2
    assert "one model for all inputs serves better" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_nothing_else_is_written_over(unsure_run, delivered, tmp_path, capsys):
    run = str(unsure_run)
    before = (unsure_run / "baseline" / "model.onnx").read_bytes()
    for folder in (unsure_run, unsure_run / "baseline", unsure_run / "candidates" / "0", unsure_run.parent):
        assert main(["cascade", run, "--out", str(folder)]) == 2
        told = capsys.readouterr().err
        assert "belongs to the run" in told or "holds other files" in told
    assert (unsure_run / "baseline" / "model.onnx").read_bytes() == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.onnx").write_text("mine")
    assert main(["cascade", run, "--out", str(mine)]) == 2 and (mine / "model.onnx").read_text() == "mine"
    assert "holds other files" in capsys.readouterr().err


def test_a_second_cascade_leaves_nothing_of_the_first(unsure_run, delivered, tmp_path, monkeypatch):
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)
    out = shutil.copytree(delivered[1], tmp_path / "out")
    (out / "answer.onnx").write_text("of an earlier early exit")
    cascading.cascade(unsure_run, out, Wish(max_drop=0.2))
    assert not (out / "answer.onnx").exists() and not list(tmp_path.glob(".out*"))


def test_what_can_not_be_made_is_told(finished_run, tmp_path, capsys):
    assert main(["cascade", str(finished_run), "--max-drop", "0.1", "--min-speedup", "2"]) == 2
    assert "give one" in capsys.readouterr().err
    assert main(["cascade", str(finished_run), "--pair", "dense", "--out", str(tmp_path / "x")]) == 2
    assert "two models" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cascade", str(finished_run), "--max-latency", "2ms"])
    assert "worst=2ms" in capsys.readouterr().err
    for words in (["--min-speedup", "0"], ["--max-drop", "-0.01"], ["--min-speedup", "nan"]):
        assert main(["cascade", str(finished_run), *words, "--out", str(tmp_path / "x")]) == 2
        assert "must be a number" in capsys.readouterr().err
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "baseline" / "validation.npz").unlink()
    with pytest.raises(UsageError, match=r"validation\.npz"):
        cascade_models.Cascader(run)
    data = json.loads((finished_run / "record.json").read_text())
    data["workload"]["metric"] = "mine"
    (run / "record.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="name it with --workload"):
        cascade_models.Cascader(run)


def test_batches_of_several_examples_are_refused(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    np.savez(run / "baseline" / "example.npz", **{"00000.input0": np.zeros((4, 1, 8, 8), np.float32)})
    with pytest.raises(UsageError, match="more than one example"):
        cascade_models.Cascader(run)
