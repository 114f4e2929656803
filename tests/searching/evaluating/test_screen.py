"""The first look is at a random sample of examples, whatever their order."""

from __future__ import annotations

import pytest
import torch

from hwprune.searching.evaluating import screen
from hwprune.searching.evaluating.early_stopping import STOP_SD, Expectation, FrontMember
from hwprune.searching.evaluating.scorer import Split
from hwprune.workload import sample_files, scoring
from hwprune.workload.metrics import METRICS


def stored(folder, inputs, targets, dense, size=100):
    """A split of batches whose dense outputs are known."""
    batches = list(zip(((x,) for x in inputs.split(size)), targets.split(size), strict=True))
    split = Split(folder / "validation.npz", [], [(x,) for x in dense.split(size)])
    split.targets = sample_files.write_batches(batches, split.file)
    return split


def sorted_labels():
    """1,000 examples of ten classes one after another, and good dense outputs."""
    labels = torch.arange(1000) // 100
    noise = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    return labels, noise + 6 * torch.nn.functional.one_hot(labels, 10)


def test_a_candidate_that_loses_on_the_first_class_only_is_not_stopped(tmp_path):
    labels, dense = sorted_labels()
    draw = torch.Generator().manual_seed(1)
    candidate = dense.clone()
    candidate[labels == 0] += 1.2 * torch.randn(100, 10, generator=draw)
    rival = dense + 0.55 * torch.randn(1000, 10, generator=draw)  # loses a bit everywhere
    top1 = METRICS["top1"]

    def divergence(outputs):
        return scoring.divergence(top1, [(outputs,)], [(dense,)], [labels])

    whole, far = divergence(candidate), divergence(rival)
    assert whole.value < far.value
    high = far.value + STOP_SD * (far.ci_high - far.value) / 1.96
    expected = Expectation({"ratio": 0.5, "ratio_sd": 0.01}, (FrontMember(1, 0.4, high),))
    assert expected.beaten_by(scoring.divergence(top1, [(candidate[:100],)], [(dense[:100],)], [labels[:100]])) is not None
    sample = screen.draw(stored(tmp_path, candidate, labels, dense), tmp_path / "screen.npz")
    outputs = [tuple(map(torch.from_numpy, arrays)) for _, arrays in screen.read_batches(str(sample.file))]  # the input itself
    assert expected.beaten_by(scoring.divergence(top1, outputs, sample.dense, sample.targets)) is None


@pytest.mark.parametrize(("size", "batches"), [(100, 1), (30, 4), (1, 100)])
def test_a_sample_holds_examples_with_their_targets_and_outputs(tmp_path, size, batches):
    number = torch.arange(1000)
    sample = screen.draw(
        stored(tmp_path, number[:, None].float(), number, torch.stack([number, -number], 1), size), tmp_path / "screen.npz"
    )
    inputs = [torch.from_numpy(arrays[0]) for _, arrays in screen.read_batches(str(sample.file))]
    assert [len(x) for x in inputs] == [size] * batches
    drawn = torch.cat(sample.targets)
    assert torch.equal(torch.cat(inputs)[:, 0], drawn.float())
    assert torch.equal(torch.cat([x for (x,) in sample.dense]), torch.stack([drawn, -drawn], 1))
    assert len(set(drawn.tolist())) == size * batches
    assert {n // 100 for n in drawn.tolist()} == set(range(10))  # from everywhere
    again = screen.draw(
        Split(tmp_path / "validation.npz", list(number.split(size)), stored_dense(number, size)), tmp_path / "2.npz"
    )
    assert torch.equal(torch.cat(again.targets), drawn)


def stored_dense(number, size):
    return [(x,) for x in torch.stack([number, -number], 1).split(size)]


def test_no_sample_of_what_does_not_come_apart(tmp_path):
    labels, dense = sorted_labels()
    split = stored(tmp_path, dense, labels, dense)
    file = tmp_path / "screen.npz"
    assert screen.draw(stored(tmp_path / "few", dense[:299], labels[:299], dense[:299]), file) is None
    for targets in ([list(range(100))] * 10, [labels[:7]] * 10):  # no tensors; of another length than the batch
        assert screen.draw(Split(split.file, targets, split.dense), file) is None
    differing = [(x if number else x[:, :9],) for number, (x,) in enumerate(split.dense)]
    assert screen.draw(Split(split.file, split.targets, differing), file) is None
    unlabelled = screen.draw(Split(split.file, [None] * 10, split.dense), file)
    assert unlabelled.targets == [None]


def test_no_screen_of_a_model_that_mixes_the_examples_of_a_batch(evaluator, monkeypatch):
    assert evaluator.dense._draw_screen() is not None
    true = evaluator.scorer.outputs
    monkeypatch.setattr(evaluator.scorer, "outputs", lambda key, split: [(x[0] * 1.01,) for x in true(key, split)])
    assert evaluator.dense._draw_screen() is None
