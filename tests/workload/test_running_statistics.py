"""Batch norms whose statistics fit other data: told where it matters, estimated anew on request."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError, WorkloadError
from hwprune.workload import running_statistics, sample_files


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=0.3)
        self.dropout = nn.Dropout(0.5)
        self.wide = nn.Linear(4, 64)
        self.fc = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.fc(self.dropout(self.wide(self.norm(x))))
        return made


def workload(shift, *, examples=600, batch=50, labelled=True):
    """Three classes; the norm's mean is off by ``shift``, its variance is that of the inputs."""
    torch.manual_seed(0)
    x, model = 3 * torch.randn(examples, 4) + 5, Net().eval()
    centred = (x - x.mean(0)) / x.std(0)
    labels = centred[:, :3].argmax(1)
    with torch.no_grad():
        for layer in (model.wide, model.fc):
            layer.weight.zero_().fill_diagonal_(1)
            layer.bias.zero_()
        model.norm.running_mean.copy_(x.mean(0) + torch.tensor([shift, 0, 0, 0]))
        model.norm.running_var.copy_(x.var(0))
    batches = [(a, b if labelled else None) for a, b in zip(x.split(batch), labels.split(batch), strict=True)]
    metric = "top1" if labelled else "agreement"
    return hwprune.Workload("bn", model, (x[:2],), batches, batches, metric=metric)


def told(given, tmp_path):
    file = tmp_path / "samples.npz"
    sample_files.write_batches(list(given.batches("validation")), file)
    with torch.no_grad():
        dense = [(given.model(*inputs),) for inputs, _ in given.batches("validation")]
    return running_statistics.advice(given, given.scoring, file, dense, [target for _, target in given.batches("validation")])


def test_statistics_are_those_of_the_calibration_data_and_the_users_model_is_not_touched():
    given = workload(shift=4.0)
    before = given.model.norm.running_mean.clone()
    model = hwprune.refresh_batch_norms(given).model
    x = torch.cat([inputs[0] for inputs, _ in given.batches("calibration")])
    torch.testing.assert_close(model.norm.running_mean, x.mean(0))
    torch.testing.assert_close(model.norm.running_var, x.var(0), rtol=0.03, atol=0)
    assert torch.equal(given.model.norm.running_mean, before)
    assert model.norm.momentum == 0.3 and not any(part.training for part in model.modules())


def test_a_gain_is_told_with_both_figures(tmp_path):
    given = workload(shift=4.0)
    word = told(given, tmp_path)
    x, labels = (torch.cat(part) for part in zip(*[(i[0], t) for i, t in given.batches("validation")], strict=True))
    right = [
        float((model(x).argmax(1) == labels).float().mean()) for model in (given.model, hwprune.refresh_batch_norms(given).model)
    ]
    assert right[0] < 0.8 < right[1]
    assert f"scores {100 * right[1]:.1f} % instead of {100 * right[0]:.1f} %" in word


@pytest.mark.parametrize("order", ["shuffled", "sorted", "ragged"])
def test_the_order_of_the_data_changes_nothing(order):
    """Class by class, or with a small last batch, averages over batches as they come would be others."""
    given = workload(shift=4.0)
    x, labels = (torch.cat(part) for part in zip(*[(i[0], t) for i, t in given.batches("calibration")], strict=True))
    picked = torch.randperm(len(x)) if order == "shuffled" else labels.argsort() if order == "sorted" else torch.arange(len(x))
    batches = [(x[part],) for part in picked.split(50)]
    if order == "ragged":
        batches = [(x[:50],), *[(part,) for part in x[50:].split(70)]]
    other = dataclasses.replace(given, calibration=[(b[0], torch.zeros(len(b[0]), dtype=torch.int64)) for b in batches])
    first, second = (hwprune.refresh_batch_norms(one).model.norm for one in (given, other))
    torch.testing.assert_close(first.running_mean, second.running_mean)
    torch.testing.assert_close(first.running_var, second.running_var)


def test_norms_that_are_not_reached_keep_what_they_have():
    given = workload(shift=4.0)
    given.model.aside = nn.BatchNorm1d(4)
    given.model.aside.running_mean.fill_(7)
    assert torch.equal(hwprune.refresh_batch_norms(given).model.aside.running_mean, torch.full((4,), 7.0))


class Named(Net):
    def forward(self, x):
        return {"logits": super().forward(x)}


class Broken(Net):
    def forward(self, x):
        return super().forward(x.reshape(50, 4))


def test_advice_never_ends_a_search(tmp_path):
    """Dict outputs are read; a model that the refreshed forward breaks is left alone, and the function itself says why."""
    given = workload(shift=4.0)
    named = Named().eval()
    named.load_state_dict(given.model.state_dict())
    file = tmp_path / "samples.npz"
    sample_files.write_batches(list(given.batches("validation")), file)
    with torch.no_grad():
        dense = [(given.model(*inputs),) for inputs, _ in given.batches("validation")]
    targets = [target for _, target in given.batches("validation")]
    word = running_statistics.advice(dataclasses.replace(given, model=named), given.scoring, file, dense, targets)
    assert "refresh_batch_norms" in word
    broken = dataclasses.replace(
        given, model=Broken().eval(), calibration=[(torch.randn(20, 4), torch.zeros(20, dtype=torch.int64))]
    )
    assert running_statistics.advice(broken, given.scoring, file, dense, targets) is None
    with pytest.raises(WorkloadError, match="can't take its calibration data: RuntimeError"):
        hwprune.refresh_batch_norms(broken)


def test_examples_of_all_of_validation_are_looked_at(tmp_path):
    """The first thousand are of another kind, and so are the calibration data: the whole split would lose by it."""
    given = workload(shift=0.0, examples=6000)
    far = [(inputs[0] + 6, target) for inputs, target in list(given.batches("validation"))[:20]]
    mixed = [*far, *list(given.batches("validation"))[20:]]
    other = dataclasses.replace(given, validation=mixed, calibration=far)
    assert told(other, tmp_path) is None


@pytest.mark.parametrize(("limit", "value"), [("FEWEST", 601), ("LEAST", 0.9)])
def test_few_examples_or_a_small_gain_are_not_worth_a_word(tmp_path, monkeypatch, limit, value):
    assert told(workload(shift=4.0), tmp_path)
    monkeypatch.setattr(running_statistics, limit, value)
    assert told(workload(shift=4.0), tmp_path) is None


def test_a_search_says_so(tmp_path):
    result = hwprune.search(workload(shift=4.0), trials=1, out=tmp_path / "run")
    assert sum("hwprune.refresh_batch_norms(workload)" in note for note in result.notes) == 1
    better = hwprune.search(hwprune.refresh_batch_norms(workload(shift=4.0)), trials=1, out=tmp_path / "better")
    assert not any("refresh_batch_norms" in note for note in better.notes)


@pytest.mark.parametrize("given", [workload(shift=0.0), workload(shift=4.0, labelled=False)], ids=["as good", "no labels"])
def test_nothing_is_said_where_nothing_is_gained_or_known(tmp_path, given):
    assert told(given, tmp_path) is None


def test_what_can_not_be_estimated_is_refused(tmp_path):
    with pytest.raises(UsageError, match="batches of one example"):
        hwprune.refresh_batch_norms(workload(shift=4.0, examples=6, batch=1))
    plain = nn.Linear(4, 3)
    with pytest.raises(UsageError, match="has no batch norms"):
        hwprune.refresh_batch_norms(
            hwprune.Workload("plain", plain, (torch.randn(2, 4),), [torch.randn(2, 4)], [torch.randn(2, 4)])
        )
