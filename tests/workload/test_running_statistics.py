"""Batch norms whose statistics fit other data: told where it matters, estimated anew on request."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError
from hwprune.workload import running_statistics, scoring


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
    scoring.write_batches(list(given.batches("validation")), file)
    with torch.no_grad():
        dense = [(given.model(*inputs),) for inputs, _ in given.batches("validation")]
    return running_statistics.advice(given, given.scoring, file, dense, [target for _, target in given.batches("validation")])


def test_statistics_are_those_of_the_calibration_data_and_the_users_model_is_not_touched():
    given = workload(shift=4.0)
    before = given.model.norm.running_mean.clone()
    model = hwprune.refresh_batch_norms(given).model
    x = torch.cat([inputs[0] for inputs, _ in given.batches("calibration")])
    torch.testing.assert_close(model.norm.running_mean, x.mean(0))
    torch.testing.assert_close(model.norm.running_var, torch.stack([part.var(0) for part in x.split(50)]).mean(0))
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
