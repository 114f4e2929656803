"""Data that don't go with the model are told at once, with what to do."""

import dataclasses

import pytest
import torch

import hwprune
from hwprune.cli.main import main
from hwprune.errors import WorkloadError
from hwprune.pruning.pruner import Pruner
from hwprune.records.measurement import Measurement
from hwprune.searching.progress import Progress
from hwprune.workload import data_checks, metrics
from tests.conftest import tiny_workload


@pytest.mark.parametrize("split", ["calibration", "validation", "test", "train"])
def test_inputs_that_the_model_can_not_take(tmp_path, split):
    """Nothing is measured, calibrated or searched before."""
    good = tiny_workload("top1")
    bad = [(inputs.movedim(1, -1), targets) for inputs, targets in good.validation]
    workload = dataclasses.replace(good, **{split: bad})
    shape = "x".join(map(str, bad[0][0].shape))
    with pytest.raises(WorkloadError, match=f"batch 0 of the {split} loader .* has inputs of shape {shape}.*example_inputs"):
        hwprune.search(workload, trials=1, out=tmp_path / "run", recover="distill:1" if split == "train" else "auto")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y + 7, "labels from"),
        (lambda y: -1 - y, "labels from"),
        (lambda y: y + 0.5, "whole numbers"),
        (lambda y: torch.nn.functional.one_hot(y, 20).float(), "argmax"),
    ],
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_that_are_none(tmp_path, split, change, words):
    good = tiny_workload("top1")
    bad = [(inputs, change(targets)) for inputs, targets in good.validation]
    with pytest.raises(WorkloadError, match=words):
        hwprune.search(dataclasses.replace(good, **{split: bad}), trials=1, out=tmp_path / "run")


def test_one_wrong_label_in_a_later_batch():
    workload = tiny_workload("top1")
    labels = [torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 2, 99])]
    with pytest.raises(WorkloadError, match="batch 1 of the test loader .* 0 to 99"):
        data_checks.check_labels(workload, "test", [(torch.zeros(4, 3),)], labels)


def test_what_is_right_passes():
    workload = tiny_workload("top1")
    data_checks.check_batches(workload, Pruner(workload).graph.module)
    texts = dataclasses.replace(workload, metric="perplexity")
    data_checks.check_labels(texts, "test", [(torch.zeros(2, 5, 9),)], [torch.tensor([[0, 8, -100, 1, 2], [3, 4, 5, 6, 7]])])
    data_checks.check_labels(
        workload, "test", [(torch.zeros(3, 4),)], [torch.tensor([0.0, 3.0, 1.0])]
    )  # as an .npz may hold them
    free = dataclasses.replace(workload, metric=lambda outputs, targets: outputs.sum(dim=1))
    data_checks.check_labels(
        free, "test", [(torch.zeros(4, 3),)], [torch.full((4,), 99)]
    )  # of a metric of the user's own nothing is known


def test_a_dense_model_that_knows_nothing():
    top1 = metrics.get("top1")
    scores = [(torch.zeros(50, 10),)], [torch.zeros(50, dtype=torch.long)]
    said = data_checks.doubt(top1, Measurement(0.12, "top1", 0.09, 0.15, 500), *scores)
    assert said is not None and "chance" in said and "weights" in said
    assert data_checks.doubt(top1, Measurement(0.8, "top1", 0.75, 0.85, 500), *scores) is None
    assert data_checks.doubt(metrics.get("psnr"), Measurement(12.0, "psnr", 11.0, 13.0, 500), *scores) is None


def test_splits_that_are_not_alike():
    top1 = metrics.get("top1")
    high, low = Measurement(0.99, "top1", 0.98, 1.0, 500), Measurement(0.7, "top1", 0.66, 0.74, 500)
    assert "not alike" in data_checks.apart(top1, high, low)
    assert data_checks.apart(top1, low, Measurement(0.73, "top1", 0.69, 0.77, 500)) is None


def test_validation_that_was_learned_by_heart():
    """A little is enough where validation is better, beyond both intervals; where test is, splits may differ so."""
    top1 = metrics.get("top1")
    learned, true = Measurement(1.0, "top1", 0.996, 1.0, 1000), Measurement(0.9345, "top1", 0.918, 0.949, 872)
    assert "1 on validation and 0.9345 on 872 test examples" in data_checks.apart(top1, learned, true)
    assert data_checks.apart(top1, true, learned) is None
    assert (
        data_checks.apart(top1, Measurement(0.95, "top1", 0.945, 0.955, 9000), Measurement(0.93, "top1", 0.925, 0.935, 9000))
        is None
    )
    assert data_checks.apart(metrics.get("psnr"), learned, true) is None


def test_a_search_with_an_untrained_model_says_so(tmp_path):
    good = tiny_workload("top1")
    scrambled = [(inputs, (targets + 1) % 4) for inputs, targets in good.validation]
    result = hwprune.search(dataclasses.replace(good, validation=scrambled, test=None), trials=1, out=tmp_path / "run")
    assert any("no better than chance" in note for note in result.notes)


def test_a_search_whose_splits_are_not_alike_says_so_before_its_trials(tmp_path):
    class Told(Progress):
        def __init__(self):
            self.words = []

        def note(self, text):
            self.words.append(text)

        def trial(self, *_):
            self.words.append("a trial")

    good = tiny_workload("top1")
    other = [(inputs, (targets + 1) % 4) for inputs, targets in good.validation]
    told = Told()
    result = hwprune.search(dataclasses.replace(good, test=other), trials=1, out=tmp_path / "run", progress=told)
    place = next(i for i, text in enumerate(told.words) if "on validation" in text and "not alike" in text)
    assert place < told.words.index("a trial")
    assert sum("not alike" in note for note in result.notes) == 1  # once, although the final round finds it too
    assert not (tmp_path / "run" / "baseline" / ".first-look.npz").exists()


def test_apply_says_it_too(tmp_path, capsys):
    code = (
        "import dataclasses\nfrom tests.conftest import tiny_workload\n"
        "def workload():\n    good = tiny_workload('top1')\n"
        "    return dataclasses.replace(good, calibration=[(x.movedim(1, -1), y) for x, y in good.calibration])\n"
    )
    (tmp_path / "bad.py").write_text(code)
    assert main(["apply", "channel=0.5", f"{tmp_path}/bad.py:workload", "--out", str(tmp_path / "out")]) == 2
    assert "calibration loader" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, bad):
    """Told by their name before anything is traced or measured."""
    workload = tiny_workload("top1")
    name, parameter = next(iter(workload.model.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[-1] = bad
    with pytest.raises(WorkloadError, match=f"parameter {name} .*NaN or infinity"):
        hwprune.search(workload, trials=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "baseline").exists()


def test_data_of_other_sizes_than_the_example():
    """A model that takes any size is measured at one, and scored at another."""
    workload = tiny_workload("top1")
    assert data_checks.unlike_example(workload) is None
    larger = [(torch.nn.functional.pad(inputs, (0, 2, 0, 2)), targets) for inputs, targets in workload.validation]
    word = data_checks.unlike_example(dataclasses.replace(workload, validation=larger))
    (inputs, _), (example,) = larger[0], workload.example_inputs
    assert word is not None
    for x in (inputs, example):
        assert "x".join(map(str, x.shape[1:])) in word
