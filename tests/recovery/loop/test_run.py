"""The training loop: better, repeatable, never worse than before."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from hwprune import uniform_recipe
from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.recovery.loop.run import train
from hwprune.recovery.loop.validation import Validator
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import recover
from hwprune.workload import metrics
from tests.recovery.conftest import batches, make
from tests.recovery.helpers import cut


@pytest.mark.parametrize("kind", ["finetune", "distill"])
def test_a_cut_model_gets_better_and_the_dense_one_is_untouched(stripes, kind):
    before = {name: value.clone() for name, value in stripes.workload.model.state_dict().items()}
    candidate = cut(stripes)
    kept = {name: value.clone() for name, value in candidate.module.state_dict().items()}
    made = recover(stripes, candidate, f"{kind}:4")
    assert made.outcome.after.value > made.outcome.before.value + 0.02
    assert Validator(stripes.workload)(made.candidate.module).value == pytest.approx(made.outcome.after.value)
    assert made.outcome.steps == 32 and made.outcome.examples == 4 * 256 and made.seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in stripes.workload.model.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in candidate.module.state_dict().items())
    assert not made.candidate.module.training


def test_never_worse_than_before(stripes):
    """A rate that ruins the model: the weights before training are what is kept."""
    candidate = cut(stripes, 0.25)
    made = recover(stripes, candidate, Plan("finetune", 1, rate=3.0, clip=0))
    assert made.outcome.best_step == 0
    assert made.outcome.after == made.outcome.before
    state = candidate.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in made.candidate.module.state_dict().items())


def test_the_same_seed_gives_the_same_weights_and_another_does_not(stripes):
    first, second, third = (recover(stripes, cut(stripes), Plan("finetune", 1, seed=seed)) for seed in (3, 3, 4))
    one, two, three = (made.candidate.module.state_dict() for made in (first, second, third))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["fc.weight"], three["fc.weight"])


def test_batch_norms_follow_the_data_or_stay(stripes):
    for norms, moves in (("train", True), ("frozen", False)):
        module = copy.deepcopy(cut(stripes).module)
        before = module.state_dict()["bn.running_mean"].clone()
        train(module, stripes.workload, Plan("finetune", 1, norms=norms), keep_best=False)
        assert torch.equal(module.state_dict()["bn.running_mean"], before) != moves
        (node, *_) = (n for n in module.graph.nodes if n.target is torch.ops.aten.batch_norm.default)
        assert isinstance(node.args[5], torch.fx.Node)  # as it was


def test_early_stopping(stripes):
    made = recover(stripes, cut(stripes), Plan("finetune", 50, rate=1e-9, patience=2))
    assert made.outcome.steps <= 3 * 8
    assert "no better validation" in made.outcome.ended


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"train": [(batches(8, 1, 8)[0][0], torch.full((8,), 9))]}, CandidateFailure, "the loss raised IndexError"),
        ({"loss": lambda out, y: out.sum() * float("nan")}, CandidateFailure, "not finite"),
        ({"loss": lambda out, y: out}, CandidateFailure, "one number"),
        ({"loss": lambda out, y: 1e30 * out.square().sum() * out.sum()}, CandidateFailure, "not finite"),
        ({"train": []}, WorkloadError, "empty"),
        ({"train": None}, WorkloadError, "train"),
    ],
)
def test_what_can_not_be_trained_is_said(stripes, change, error, words):
    from hwprune.pruning.pruner import Pruner

    pruner = Pruner(dataclasses.replace(stripes.workload, **change))
    before = {name: value.clone() for name, value in pruner.workload.model.state_dict().items()}
    with pytest.raises(error, match=words):
        recover(pruner, cut(stripes), "finetune:1")
    assert all(torch.equal(value, before[name]) for name, value in pruner.workload.model.state_dict().items())


def test_a_loss_that_explodes_is_tried_again_with_a_smaller_rate(stripes):
    calls = []

    def loss(out, y):
        calls.append(1)
        value = nn.functional.cross_entropy(out, y)
        return value * float("nan") if len(calls) == 5 else value

    from hwprune.pruning.pruner import Pruner

    made = recover(Pruner(dataclasses.replace(stripes.workload, loss=loss)), cut(stripes), Plan("finetune", 2, rate=0.004))
    assert made.outcome.restarts == 1 and made.outcome.rate == pytest.approx(0.001)
    assert made.outcome.steps == 16


def test_frozen_parameters_stay_and_a_frozen_model_is_refused():
    from hwprune.pruning.pruner import Pruner

    workload = make()
    workload.model.stem.weight.requires_grad_(False)
    pruner = Pruner(workload)
    candidate = pruner.prune(uniform_recipe(pruner, "unstructured", 0.5, criterion="l1", compensation="none"))
    made = recover(pruner, candidate, Plan("finetune", 4, rate=0.003))
    assert torch.equal(made.candidate.module.state_dict()["stem.weight"], candidate.module.state_dict()["stem.weight"])
    assert not torch.equal(made.candidate.module.state_dict()["fc.weight"], candidate.module.state_dict()["fc.weight"])
    workload.model.requires_grad_(False)
    with pytest.raises(CandidateFailure, match="frozen"):
        recover(pruner, candidate, "finetune:1")


def test_one_batch_is_enough(stripes):
    from hwprune.pruning.pruner import Pruner

    made = recover(Pruner(dataclasses.replace(stripes.workload, train=batches(8, 1, 8))), cut(stripes), "distill:3")
    assert made.outcome.steps == 3


def test_metrics_where_less_is_better(stripes):
    scored = metrics.Metric("loss", lambda out, y: nn.functional.cross_entropy(out, y, reduction="none"), higher_is_better=False)
    judge = Validator(dataclasses.replace(stripes.workload, metric=scored))
    assert judge.better(0.1, than=0.2) and not judge.better(0.2, than=0.1)
