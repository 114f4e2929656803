"""What goes wrong in a training run, and what looks as if it did."""

from __future__ import annotations

import copy
import dataclasses
import math
import resource
import warnings

import pytest
import torch
from torch import nn

import hwprune
from hwprune import uniform_recipe
from hwprune.errors import CandidateFailure, UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery import schedules
from hwprune.recovery.loop import batch_norms, distillation, rates
from hwprune.recovery.loop.checkpoint import FILE, Checkpoint
from hwprune.recovery.loop.run import search_rate, train
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import MASK_LEARNERS, prune_gradually, recover
from hwprune.recovery.sparsifiers.base import FixedMask
from hwprune.recovery.sparsifiers.gates import Gates
from hwprune.recovery.sparsifiers.mask_learner import Gradual
from hwprune.workload.metrics import Metric
from hwprune.workload.workload import first_tensor
from tests.recovery.conftest import batches

HALF = Recipe((UnitChoice("inner.weight:0", "channel", 0.5, "l1"),), "none")
SAVINGS = {"inner.weight:0": ((4, 8, 12, 16), (0.5, 0.35, 0.15, 0.0))}


def gates(pruner, recipe, plan):
    return Gates(pruner, recipe, plan, SAVINGS, 0.6)


def private(pruner):
    return Pruner(dataclasses.replace(pruner.workload, model=copy.deepcopy(pruner.workload.model)))


def masked(pruner, share=0.5):
    return pruner.prune(uniform_recipe(pruner, "unstructured", share, criterion="l1", compensation="none"))


# -- learning rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bowl", "expected"), [(1e-3, 1e-3), (1.6e-2, 1.6e-2), (1e9, 0.256), (6.25e-5, 6.25e-5), (1e-9, 1e-3 / 256)]
)
def test_the_best_rate_of_a_ladder_is_found(bowl, expected):
    """Above ``bowl`` a rate ruins what was there."""

    def loss_of(rate):
        return 10.0 if rate > 1.5 * bowl else 2.0 - rate / bowl

    assert rates.best(loss_of, 1e-3).rate == pytest.approx(expected)


def test_a_rate_that_disturbs_a_little_is_not_given_up():
    """Eight steps with a ResNet that has lost little: the larger rate is ahead after two epochs, not after eight steps."""
    seen = {0.0: 0.534, 1e-3: 0.571, 4e-3: 1.549, 2.5e-4: 0.504}
    assert rates.best(seen.__getitem__, 1e-3).rate == 1e-3


def test_rates_that_fail_are_not_taken():
    assert rates.best(lambda rate: 1.0 if rate < 1e-3 else math.inf, 1e-3).rate < 1e-3
    assert rates.best(lambda rate: 1.0, 1e-3).rate == 1e-3


def test_a_plateau_does_not_end_the_ladder():
    """Nothing is nearly learned yet, but ten times as much with each rate: losses of a transformer without 95 % of its weights."""
    seen = {0.0: 3.103, 1e-4: 3.102, 4e-4: 3.086, 1.6e-3: 3.053, 6.4e-3: 3.014, 2.56e-2: 3.015}
    assert rates.best(lambda rate: next(v for k, v in seen.items() if math.isclose(k, rate)), 1e-4).rate == pytest.approx(6.4e-3)


def test_the_search_for_a_rate_leaves_no_trace_and_is_the_one_that_training_makes(stripes):
    candidate = masked(stripes, 0.8)
    module = copy.deepcopy(candidate.module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    plan = Plan("finetune", 6)
    rate = search_rate(module, stripes.workload, plan, FixedMask(candidate.masks))
    assert torch.equal(torch.rand(1), wanted)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    made = recover(stripes, candidate, plan)
    assert made.outcome.rate == rate
    assert made.outcome.examples > 6 * 256  # the search is counted
    assert recover(stripes, candidate, Plan("finetune", 6, rate=0.002)).outcome.examples == 6 * 256


@pytest.mark.parametrize("little", [True, False])
def test_trials_that_bring_little_are_made_again_longer(stripes, monkeypatch, little):
    asked = []

    def best(loss_of, first, margin):
        assert margin == rates.MARGIN
        asked.append((first, [loss_of(rate) for rate in (0.0, first)]))
        return rates.Found(first / 2, rates.LITTLE + (-0.01 if little else 0.01))

    monkeypatch.setattr(rates, "best", best)
    candidate = masked(stripes, 0.8)
    rate = search_rate(copy.deepcopy(candidate.module), stripes.workload, Plan("finetune", 12), FixedMask(candidate.masks))
    first = asked[0][0]
    # From the rate that the short ones found and from the first one, with four times the steps.
    assert [rate for rate, _ in asked] == ([first, first / 2, first] if little else [first])
    assert rate == asked[min(1, len(asked) - 1)][0] / 2
    if little:
        assert asked[2][1][1] < asked[0][1][1]


# -- what a user's loss and data may do ------------------------------------------------------------------


def test_a_loss_without_a_gradient_is_a_failure_with_its_reason(stripes):
    pruner = Pruner(dataclasses.replace(stripes.workload, loss=lambda out, y: (out.argmax(1) != y).float().mean()))
    with pytest.raises(CandidateFailure, match="does not require grad"):
        recover(pruner, masked(pruner), "finetune:1")


def test_a_distillation_needs_no_labels_whatever_the_metric_needs(stripes):
    bare = [images for images, _ in stripes.workload.train]
    pruner = Pruner(dataclasses.replace(stripes.workload, train=bare))
    made = recover(pruner, masked(pruner, 0.8), "distill:4")
    assert made.outcome.after.value > made.outcome.before.value
    with pytest.raises(CandidateFailure, match="no targets, and distill"):
        recover(pruner, masked(pruner), "finetune:1")


def test_a_last_batch_of_one_example_spoils_no_batch_norm(stripes):
    images, labels = batches(65, 7, 65)[0]
    train_data = list(zip(images.split(32), labels.split(32), strict=True))
    assert len(train_data[-1][1]) == 1
    pruner = Pruner(dataclasses.replace(stripes.workload, train=train_data))
    for kind in ("finetune", "distill"):
        made = recover(pruner, masked(pruner), Plan(kind, 3, rate=1e-3))
        assert made.outcome.restarts == 0
        assert all(bool(torch.isfinite(value).all()) for value in made.candidate.module.state_dict().values())


def test_frozen_batch_norms_are_the_same_model_with_constant_statistics(stripes):
    module = copy.deepcopy(stripes.graph.module)
    still = batch_norms.frozen(module)
    assert batch_norms.has_any(module) and dict(still.named_parameters())["fc.weight"] is module.fc.weight
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(first_tensor(still.eval()(x)), module.eval()(x))
        before = module.bn.running_mean.clone()
        still.train()(x)
    assert torch.equal(module.bn.running_mean, before)


def test_regression_is_distilled_by_the_spread_of_all_data_not_of_a_batch():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    x = torch.randn(65, 4)
    data = [(part, part.sum(dim=1, keepdim=True)) for part in x.split(32)]
    error = Metric("error", lambda out, y: (out - y).square().mean(dim=1), higher_is_better=False)
    workload = hwprune.Workload("line", Line(), (torch.zeros(1, 4),), data, data, None, data, error, nn.functional.mse_loss)
    pruner = Pruner(workload)
    made = recover(pruner, masked(pruner), Plan("distill", 2, rate=1e-3))  # the last batch holds one example
    assert made.outcome.restarts == 0
    assert float(distillation.logits(torch.ones(1, 1), torch.zeros(1, 1), None, 2.0, 4.0)) == pytest.approx(0.25)


# -- checkpoints ----------------------------------------------------------------------------------------


class Enough(Exception):
    pass


def stop_after(step):
    def stop(done, total, left, best):
        if done == step:
            raise Enough

    return stop


def test_a_checkpoint_of_another_candidate_is_not_used(stripes, tmp_path):
    """As many channels, but others: shapes alone don't tell them apart."""
    plan = Plan("finetune", 3, checkpoint_s=0, checks=100)
    one, other = (
        stripes.prune(Recipe((UnitChoice("inner.weight:0", "channel", 0.5, method),), "none")) for method in ("l1", "random")
    )
    assert any(not torch.equal(a, b) for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True))
    with pytest.raises(Enough):
        recover(stripes, one, plan, folder=tmp_path, report=stop_after(9))
    assert (tmp_path / FILE).is_file()
    found = recover(stripes, other, plan, folder=tmp_path)
    clean = recover(stripes, other, plan)
    assert all(
        torch.equal(value, clean.candidate.module.state_dict()[name])
        for name, value in found.candidate.module.state_dict().items()
    )


@pytest.mark.parametrize("missing", ["best", "rng", "plan", "step"])
def test_half_a_checkpoint_is_none(stripes, tmp_path, missing):
    plan = Plan("finetune", 2, checkpoint_s=0, checks=100)
    candidate = masked(stripes)
    with pytest.raises(Enough):
        recover(stripes, candidate, plan, folder=tmp_path, report=stop_after(5))
    known = Checkpoint.read(tmp_path / FILE)
    known.tensors.pop(missing, None)
    known.facts.pop(missing, None)
    if missing == "rng":
        known.tensors.pop("rng", None)
        from safetensors.torch import save_file

        flat = {f"{group}/{name}": tensor for group, named in known.tensors.items() for name, tensor in named.items()}
        import json

        save_file(flat, tmp_path / FILE, {"facts": json.dumps(known.facts)})
    else:
        known.tensors.pop("rng", None)
        known.write(tmp_path / FILE)
    made = recover(stripes, candidate, plan, folder=tmp_path)
    assert made.outcome.steps == 16 and made.outcome.examples == 512


def test_a_full_disk_ends_no_training(stripes, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            made = recover(stripes, masked(stripes), Plan("finetune", 1, checkpoint_s=0), folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert made.outcome.steps == 8 and not list(tmp_path.iterdir())
    assert any("no checkpoint" in str(warning.message) for warning in told)


def test_what_is_kept_of_a_finished_training_gives_it_again(stripes, tmp_path):
    plan, candidate = Plan("finetune", 2), masked(stripes, 0.8)
    first = recover(stripes, candidate, plan, folder=tmp_path, keep_checkpoint=True)
    calls = []
    again = recover(stripes, candidate, plan, folder=tmp_path, report=lambda *told: calls.append(told))
    assert not calls and again.outcome.after == first.outcome.after and again.outcome.steps == first.outcome.steps
    state = first.candidate.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.candidate.module.state_dict().items())
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("decider", [*sorted(MASK_LEARNERS), "gates"])
def test_every_decider_goes_on_from_its_checkpoint(stripes, tmp_path, decider):
    how = gates if decider == "gates" else decider
    plan = Plan("gradual", 4, checkpoint_s=0, checks=100, updates=8, rate=0.002)
    whole = prune_gradually(stripes, HALF, plan, how)
    with pytest.raises(Enough):  # 19 steps of rising sparsity, 13 after it
        prune_gradually(stripes, HALF, plan, how, folder=tmp_path, report=stop_after(11))
    calls = []
    resumed = prune_gradually(stripes, HALF, plan, how, folder=tmp_path, report=lambda *told: calls.append(told[0]))
    assert calls[0] == 11  # the step that was lost
    assert resumed.candidate.recipe == whole.candidate.recipe
    state = whole.candidate.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.candidate.module.state_dict().items())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_gradual_run_that_was_stopped_while_it_settled_does_not_rise_again(stripes, tmp_path):
    plan = Plan("gradual", 4, checkpoint_s=0, checks=100, updates=8, rate=0.002)
    seen = []

    def stop(done, total, left, best):
        seen.append((done, total))
        if total == 13 and done == 6:
            raise Enough

    with pytest.raises(Enough):
        prune_gradually(stripes, HALF, plan, folder=tmp_path, report=stop)
    seen.clear()
    prune_gradually(stripes, HALF, plan, folder=tmp_path, report=lambda *told: seen.append(told[:2]))
    assert seen[0] == (6, 13)


# -- what decides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decider", [*sorted(MASK_LEARNERS), "gates"])
def test_training_that_begins_anew_knows_nothing_of_the_first_try(stripes, decider):
    """One batch late in the run gives NaN; what follows is what a run with the smaller rate would have been."""
    how = gates if decider == "gates" else MASK_LEARNERS[decider]

    def run(rate, bad):
        own = private(stripes)
        calls = 0

        def loss(out, y):
            nonlocal calls
            calls += 1
            return nn.functional.cross_entropy(out, y) * (math.nan if calls == bad else 1.0)

        plan = Plan("gradual", 2, rate=rate, updates=8, task=1.0)
        made = how(own, HALF, plan)
        workload = dataclasses.replace(stripes.workload, loss=loss)
        outcome = train(own.graph.module, workload, plan, sparsifier=made, keep_best=False)
        return outcome, own.graph.module.state_dict()

    first, state = run(0.008, 14)
    second, expected = run(0.002, 0)
    assert first.restarts == 1 and second.restarts == 0
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in state.items())


@pytest.mark.parametrize("schedule", ["exponential", "iterative:3", "cubic"])
@pytest.mark.parametrize("sparsity", [0.23, 0.33, 0.67])
def test_the_end_of_a_schedule_is_exact(stripes, schedule, sparsity):
    assert schedules.get(schedule)(1.0, 0.0, sparsity) == sparsity
    recipe = Recipe((UnitChoice("outer.weight", "unstructured", sparsity, "l1"),), "none")
    made = prune_gradually(stripes, recipe, Plan("gradual", 1, schedule=schedule, rate=0.002), "lasso")
    (choice,) = made.candidate.recipe.choices
    assert choice.sparsity == pytest.approx(sparsity, abs=1e-3)


def test_gates_learn_to_close(stripes):
    """The speed is reached by training, before any gate is closed by hand, and what closes is told from what stays."""
    own = private(stripes)
    plan = Plan("gradual", 12, rate=0.002)
    decider = gates(own, HALF, plan)
    seen = []
    closed = decider._closed
    decider._closed = lambda: seen.append(float(decider.expected_ratio().detach())) or closed()
    train(own.graph.module, stripes.workload, plan, sparsifier=decider, teacher=stripes.graph.module, keep_best=False)
    assert seen[0] == pytest.approx(0.6, abs=0.06)
    opened = decider.open("inner.weight:0").detach().sort().values
    assert int((opened < 0.3).sum()) >= 8 and int((opened > 0.7).sum()) >= 3


def test_all_epochs_may_be_spent_while_sparsity_rises(stripes):
    made = prune_gradually(stripes, HALF, Plan("gradual", 1, settle=0.0, rate=0.002))
    assert made.outcome.steps == 0 and made.deciding.steps == 8 and made.candidate.recipe.choices[0].sparsity == 0.5


def test_criteria_that_look_at_data_decide_less_often(stripes):
    for method, updates in (("l1", 20), ("taylor", 5)):
        recipe = Recipe((UnitChoice("inner.weight:0", "channel", 0.5, method),), "none")
        assert Gradual(private(stripes), recipe, Plan("gradual")).updates == updates


# -- wrong input ---------------------------------------------------------------------------------------------


def test_a_candidate_of_another_model_is_refused(stripes):
    from tests.recovery.conftest import make

    other = Pruner(make(width=12))
    with pytest.raises(UsageError, match="another model"):
        recover(stripes, masked(other))


@pytest.mark.parametrize(
    "wrong", [{"patience": -1}, {"epochs": "2"}, {"seed": 1.5}, {"temperature": math.inf}, {"rate": True}, {"updates": 2.5}]
)
def test_plans_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Plan(**wrong)


def test_a_loop_may_leave_the_model_in_another_precision(stripes):
    made = recover(stripes, masked(stripes), fit=lambda module: module.double())
    assert all(p.dtype == torch.float32 for p in made.candidate.module.parameters())


def test_masks_are_held_inside_a_loop_of_the_users_own(stripes):
    """Adam revives weights in each step; what is trained has to be the masked network all the same."""
    candidate = masked(stripes, 0.8)

    def fit(module):
        module.train()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
        for images, labels in stripes.workload.train * 4:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()

    made = recover(stripes, candidate, fit=fit)
    planned = recover(stripes, candidate, Plan("finetune", 4, rate=0.005))
    assert made.outcome.after.value > made.outcome.before.value
    assert made.outcome.after.value > (planned.outcome.after.value + made.outcome.before.value) / 2
    assert not made.candidate.module._forward_pre_hooks
    with pytest.raises(UsageError, match="one of them"):
        recover(stripes, candidate, "distill:1", fit=fit)


def test_deciders_and_plans_that_do_not_fit_are_refused(stripes):
    with pytest.raises(UsageError, match="movement"):
        prune_gradually(stripes, HALF, Plan("gradual"), "movment")
    with pytest.raises(UsageError, match="no gradual plan"):
        prune_gradually(stripes, HALF, Plan("finetune", 2), "movement")
