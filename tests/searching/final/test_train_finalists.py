"""Recovery training of the finalists, in a whole search."""

import csv
import dataclasses
import json

import pytest
import torch

import hwprune
from hwprune.cli.main import main
from hwprune.common.files import sha256
from hwprune.errors import UsageError
from hwprune.searching.constraints import Constraints
from hwprune.searching.final import short_trainings, train_finalists
from hwprune.searching.final.point import join_front
from hwprune.searching.study.attributes import TRAINED_DROPS
from hwprune.searching.study.store import Store
from tests.recovery.conftest import make

TRIALS = short_trainings.MILESTONES[0] + 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("recover") / "run"
    workload = make(width=96)
    real, for_a_while = short_trainings.recover, []

    def recover(pruner, candidate, plan):
        for_a_while.append(candidate.recipe.digest)
        return real(pruner, candidate, plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_trainings, "recover", recover)
        result = hwprune.search(workload, trials=TRIALS, out=run, recover="distill:3", seed=0)
    (run.parent / "for_a_while.json").write_text(json.dumps(for_a_while))
    return workload, run, result


def test_each_candidate_is_trained_for_a_while_once(trained):
    """Whether the search asks for it or its final round; from the first of them on the search goes by what trainings brought."""
    _, run, _ = trained
    counted = json.loads((run.parent / "for_a_while.json").read_text())
    store = Store(Store.default_storage(run), None)
    try:
        told = store.read(TRAINED_DROPS)
        metrics = store.read(f"{short_trainings.SHORT_TRAINING} distill:3") or {}
    finally:
        store.close()
    assert len(counted) == len(set(counted)) == len(metrics)  # none where few candidates are worth it
    assert not told or (len(told) >= short_trainings.LEAST and set(told) <= set(metrics))


def test_trained_candidates_are_trials_of_their_own_with_files(trained):
    _, run, result = trained
    rows = [t for t in result.trials if t.recovery]
    assert rows, "nobody was trained"
    for trial in rows:
        parent = next(t for t in result.trials if t.number == trial.recovery["of"])
        assert trial.metric.value > parent.metric.value
        assert trial.recovery["seconds"] > 0 and trial.recovery["examples"] >= 3 * 256
        assert trial.origin == f"distill:3 of {parent.number}"
    assert sum(not t.recovery for t in result.trials) == TRIALS  # training takes no trial's place
    for point in result.points:
        folder = run / "candidates" / str(point.trial.number)
        assert (folder / "model.onnx").is_file() and (folder / "model.safetensors").is_file()
        assert (folder / "recovery.json").is_file() == bool(point.trial.recovery)


def test_both_regimes_and_the_cost_are_told(trained):
    _, run, result = trained
    record = json.loads((run / "record.json").read_text())
    assert record["untrained"] and all("metric" in point for point in record["untrained"])
    assert any("training took" in note for note in result.notes)
    rows = list(csv.DictReader((run / "front.csv").read_text().splitlines()))
    told = [row for row in rows if row["recovery"]]
    assert {row["trial"] for row in told} == {str(p.trial.number) for p in result.points if p.trial.recovery}
    seconds = {str(point.trial.number): point.trial.recovery["seconds"] for point in result.points if point.trial.recovery}
    for row in told:  # some milliseconds on a fast machine: the same number, not more than nothing
        assert row["recovery"] == "distill:3" and row["trained_from"].isdigit()
        assert float(row["train_seconds"]) == pytest.approx(seconds[row["trial"]], abs=1e-3)
    page = (run / "report.html").read_text()
    assert "distill:3" in page


def test_the_file_holds_the_trained_weights(trained):
    workload, run, result = trained
    from safetensors.torch import load_file

    from hwprune.pruning.pruner import Pruner

    point = next((p for p in result.points if p.trial.recovery), None)
    if point is None:
        pytest.skip("no trained candidate is on this machine's front")
    plain = Pruner(workload).prune(dataclasses.replace(point.trial.recipe)).module.state_dict()
    stored = load_file(run / "candidates" / str(point.trial.number) / "model.safetensors")
    assert any(not torch.allclose(stored[name], plain[name], atol=1e-4) for name in stored)


def test_a_finished_run_that_is_resumed_trains_nobody_again(trained, tmp_path, monkeypatch):
    import shutil

    workload, original, result = trained
    run = tmp_path / "run"  # it is measured again, so another front may come of it: the other tests have theirs
    shutil.copytree(original, run)
    before = {p.trial.number: sha256(run / "candidates" / str(p.trial.number) / "model.onnx") for p in result.points}

    def never(*_args, **_kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(train_finalists, "recover", never)
    monkeypatch.setattr(short_trainings, "recover", never)
    again = hwprune.search(workload, trials=TRIALS, out=run, resume=True, recover="distill:3", seed=0)
    numbers = {t.number for t in again.trials}
    assert numbers == {t.number for t in result.trials}
    for point in again.points:
        if point.trial.number in before:
            assert sha256(run / "candidates" / str(point.trial.number) / "model.onnx") == before[point.trial.number]


@pytest.mark.parametrize(
    ("change", "recover", "words"),
    [
        ({"train": None}, "finetune:1", "train=..."),
        ({"train": []}, "finetune:1", "empty"),
        ({}, "finetune:0", "epochs must be > 0"),
        ({}, "finetune:many", "number of epochs"),
    ],
)
def test_what_can_not_be_trained_is_told_before_the_search(change, recover, words, tmp_path):
    with pytest.raises(hwprune.HwpruneError, match=words):
        hwprune.search(dataclasses.replace(make(), **change), trials=2, out=tmp_path / "run", recover=recover)


def test_a_frozen_model_is_told_before_the_search(tmp_path):
    workload = make()
    workload.model.requires_grad_(False)
    with pytest.raises(UsageError, match="frozen"):
        hwprune.search(workload, trials=2, out=tmp_path / "run", recover="distill:1")


def test_the_command_line_refuses_what_has_no_training_data(tmp_path, capsys):
    words = [
        "search",
        "tests/workloads.py:good",
        "--recover",
        "distill:1",
        "--trials",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    assert main(words) == 2
    assert "training data" in capsys.readouterr().err


def test_the_front_of_both_regimes_holds_no_dominated_point(trained):
    _, _, result = trained
    points = list(result.points)
    for a in points:
        assert not any(b.told_drop <= a.told_drop and b.speedup.value > a.speedup.value for b in points if b is not a)
    assert join_front([], [], Constraints()) == []


def test_a_trained_recipe_applied_again_says_that_it_prunes_only(trained, tmp_path, capsys):
    import shutil

    _, run, _ = trained
    folder = next(path.parent for path in sorted((run / "candidates").glob("*/recipe.json")))
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "recovery.json").write_text("{}")
    main(["apply", str(tmp_path / "copy" / "recipe.json"), "tests/workloads.py:good", "--quiet", "--out", str(tmp_path / "out")])
    assert "prunes without training" in capsys.readouterr().err


def test_ctrl_c_leaves_the_checkpoint_and_a_failure_does_not(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from hwprune.errors import CandidateFailure
    from hwprune.recovery.plan import Plan

    written = {}
    store = SimpleNamespace(read=written.get, write=written.__setitem__, trials=list)
    evaluator = SimpleNamespace(run=tmp_path, pruner=SimpleNamespace(prune=lambda recipe: None))
    trainer = train_finalists._Trainer(evaluator, store, Plan("distill"), Constraints(), None)
    for error in (KeyboardInterrupt(), CandidateFailure("recover", "no luck")):

        def stopped(*_args, folder, error=error, **_kwargs):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recovery.safetensors").write_bytes(b"so far")
            raise error

        monkeypatch.setattr(train_finalists, "recover", stopped)
        trial = SimpleNamespace(number=3, recipe=None)
        checkpoint = tmp_path / "candidates" / "3.training" / "recovery.safetensors"
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                trainer.train(trial)
            assert checkpoint.is_file()
        else:
            assert trainer.train(trial) is None
            assert not checkpoint.exists() and written[f"{short_trainings.FAILED} distill:1"] == {"3": "no luck"}


def test_an_export_says_that_its_weights_were_trained(trained, tmp_path, capsys):
    _, run, result = trained
    for point in result.points:
        number = str(point.trial.number)
        for form in ("onnx", "recipe"):
            out = tmp_path / f"{form}{number}"
            assert main(["export", str(run), "--trial", number, "--format", form, "--out", str(out)]) == 0
            told = json.loads((out / "manifest.json").read_text())["training"]
            warned = "trained after pruning" in capsys.readouterr().err
            if point.trial.recovery:
                assert told["plan"]["kind"] == "distill" and told["of"] == point.trial.recovery["of"]
            else:
                assert told is None
            assert warned == (form == "recipe" and bool(point.trial.recovery))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda out, y: (out.argmax(1) != y).float().mean(), "no gradient"),
        (lambda out, y: torch.nn.functional.cross_entropy(out, y + 100), "raised IndexError"),
        (lambda out, y: (out * float("nan")).sum(), "is nan"),
        (lambda out, y: out.sum(dim=1), "no single number"),
    ],
)
def test_a_loss_that_can_not_be_followed_is_known_before_the_search(tmp_path, loss, words):
    workload = dataclasses.replace(make(), loss=loss)
    with pytest.raises(UsageError, match=words):
        hwprune.search(workload, trials=2, out=tmp_path / "run", recover="finetune:1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distil:2", "Did you mean distill:EPOCHS"),
        ("finetune:abc", "^(?s:(?!.*recover: recover).)*$"),
        ("tune", "finetune:EPOCHS"),
    ],
)
def test_a_misspelt_training_is_told_what_there_is(text, words):
    from hwprune.searching.job import Job

    with pytest.raises(UsageError) as told:
        Job("x", recover=text)
    import re

    assert re.search(words, str(told.value))


def test_asking_for_the_loss_leaves_a_model_in_train_mode_as_it_is():
    from hwprune.pruning.pruner import Pruner
    from hwprune.recovery.plan import Plan
    from hwprune.searching import preflight

    workload = make()
    pruner = Pruner(workload)
    workload.model.train()
    before = {name: value.clone() for name, value in workload.model.state_dict().items()}
    preflight.check_training(Plan("finetune", 1), pruner)
    assert all(torch.equal(value, before[name]) for name, value in workload.model.state_dict().items())


def test_a_full_disk_is_tried_again_when_the_search_is_resumed(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from hwprune.recovery.plan import Plan

    written = {}
    store = SimpleNamespace(read=written.get, write=written.__setitem__, trials=list)
    evaluator = SimpleNamespace(run=tmp_path, pruner=SimpleNamespace(prune=lambda recipe: None))
    trainer = train_finalists._Trainer(evaluator, store, Plan("distill"), Constraints(), None)
    checkpoint = tmp_path / "candidates" / "3.training"
    checkpoint.mkdir(parents=True)

    def full(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(train_finalists, "recover", full)
    assert trainer.train(SimpleNamespace(number=3, recipe=None)) is None
    assert trainer.short.passing == {"3": "OSError: no space left"} and not written and checkpoint.is_dir()
