"""The training loop: masks hold, nothing gets worse, a kill costs a checkpoint, and what goes wrong is said."""

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from hwprune import uniform_recipe
from hwprune.errors import CandidateFailure, RunError, UsageError, WorkloadError
from hwprune.recovery.loop.checkpoint import FILE, Checkpoint
from hwprune.recovery.loop.run import train
from hwprune.recovery.loop.validation import Validator
from hwprune.recovery.plan import Plan, parse
from hwprune.recovery.recover import recover
from hwprune.recovery.sparsifiers.base import FixedMask
from hwprune.workload import metrics

from .conftest import batches, make


def cut(stripes, sparsity=0.5):
    return stripes.prune(uniform_recipe(stripes, "channel", sparsity, criterion="l1", compensation="none"))


def masked(stripes, sparsity=0.9):
    return stripes.prune(uniform_recipe(stripes, "unstructured", sparsity, criterion="l1", compensation="none"))


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


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_not_one_removed_weight_comes_back(stripes, optimizer):
    candidate = masked(stripes)
    made = recover(stripes, candidate, Plan("finetune", 2, optimizer=optimizer, average=0.9, decay=0.1))
    for name, mask in candidate.masks.items():
        weight = dict(made.candidate.module.named_parameters())[name]
        assert (weight[~mask] == 0).all()
        assert not torch.equal(weight, dict(candidate.module.named_parameters())[name])


def test_masks_are_held_on_gradients_state_and_averages_too(stripes):
    module = copy.deepcopy(masked(stripes).module)
    held = FixedMask(masked(stripes).masks)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for images, labels in batches(64, 5):
        nn.functional.cross_entropy(module(images), labels).backward()
        held.before_step(module)
        optimizer.step()
        held.hold(module, optimizer)
    for name, mask in held.masks.items():
        parameter = dict(module.named_parameters())[name]
        assert (parameter.grad[~mask] == 0).all()
        assert (optimizer.state[parameter]["exp_avg"][~mask] == 0).all()
        assert (optimizer.state[parameter]["exp_avg_sq"][~mask] == 0).all()
    held.check(module)
    with torch.no_grad():
        name, mask = next(iter(held.masks.items()))
        dict(module.named_parameters())[name][~mask] = 1e-9
    with pytest.raises(RunError, match="revived"):
        held.check(module)


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


def test_two_batches_accumulated_are_one_batch_of_twice_the_size(stripes):
    """Without dropout and batch statistics; gradients are averaged, not added."""
    plain = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(*[iter(batches(128, 1, 16))] * 2, strict=True)]
    halves = [half for x, y in plain for half in zip(x.split(16), y.split(16), strict=True)]
    found = []
    for data, count in ((plain, 1), (halves, 2)):
        workload = dataclasses.replace(stripes.workload, train=_InOrder(data))
        module = copy.deepcopy(cut(stripes).module)
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.dropout.default:
                node.args = (node.args[0], 0.0, node.args[2])
        module.recompile()
        train(module, workload, Plan("finetune", 1, accumulate=count, norms="frozen"), keep_best=False)
        found.append(module.state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


class _InOrder:
    """A loader that is no list, so it is not shuffled."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return iter(self.data)


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


def test_features_of_the_teacher_come_nearer(stripes):
    from hwprune.recovery.loop import distillation

    recipe = uniform_recipe(stripes, "channel", 0.5, criterion="l1", compensation="none")
    recipe = dataclasses.replace(recipe, choices=tuple(c for c in recipe.choices if c.unit.startswith("inner")))
    candidate = stripes.prune(recipe)
    names = [branch.name for branch in stripes.graph.branches]
    assert distillation.shared_nodes(candidate.module, stripes.graph.module, stripes.workload.example_inputs, names) == names
    images, _ = batches(128, 9, 128)[0]

    def distance(module):
        with torch.no_grad():
            _, mine = distillation.tapped(module, names)(images)
            _, other = distillation.tapped(stripes.graph.module, names)(images)
        return float(distillation.features(mine, other))

    with_it, without = (
        recover(stripes, candidate, Plan("distill", 6, features=f, rate=0.01, norms="frozen")) for f in (3.0, 0.0)
    )
    assert distance(with_it.candidate.module) < 0.9 * distance(without.candidate.module)
    assert distance(with_it.candidate.module) < 0.9 * distance(candidate.module)


def test_labels_are_not_needed_where_the_dense_model_teaches(stripes):
    from hwprune.pruning.pruner import Pruner

    splits = {name: [(x, None) for x, _ in getattr(stripes.workload, name)] for name in ("train", "validation", "calibration")}
    pruner = Pruner(dataclasses.replace(stripes.workload, metric="agreement", **splits))
    made = recover(pruner, cut(stripes), "distill:4")
    assert made.outcome.before.value < 0.9  # agreement with the dense model, not with itself
    assert made.outcome.after.value > made.outcome.before.value


def test_agreement_is_with_the_dense_model_where_labels_teach_too(stripes):
    from hwprune.pruning.pruner import Pruner

    pruner = Pruner(dataclasses.replace(stripes.workload, metric="agreement"))
    assert recover(pruner, cut(stripes), "finetune:1").outcome.before.value < 0.9


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


def test_a_loop_of_the_users_own(stripes):
    candidate = masked(stripes, 0.8)

    def fit(module):
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        for images, labels in stripes.workload.train * 3:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()

    made = recover(stripes, candidate, fit=fit)
    assert made.outcome.after.value > made.outcome.before.value
    for name, mask in candidate.masks.items():
        assert (dict(made.candidate.module.named_parameters())[name][~mask] == 0).all()
    with pytest.raises(CandidateFailure, match="ZeroDivisionError"):
        recover(stripes, candidate, fit=lambda module: 1 / 0)
    ruined = recover(stripes, candidate, fit=lambda module: nn.init.zeros_(module.fc.weight))
    assert ruined.outcome.best_step == 0 and (ruined.candidate.module.fc.weight != 0).any()


def test_plans():
    assert parse("obs+sequential") is None
    assert parse("distill:0.5") == Plan("distill", 0.5) and parse("finetune").text() == "finetune:1"
    assert not Plan("finetune").taught and Plan("distill").taught and Plan("finetune", features=1.0).taught
    for wrong in ("finetune:x", "distill:0", "gradual:-1", "finetune:nan"):
        with pytest.raises(UsageError):
            parse(wrong)
    with pytest.raises(UsageError) as told:
        Plan("fine", epochs=0, warmup=1, accumulate=0, schedule="cubik", norms="some", temperature=0)
    assert len(str(told.value).splitlines()) >= 8  # all faults at once


# -- checkpoints -----------------------------------------------------------------------------------


class Jitter(torch.utils.data.Dataset):
    """Augments with torch's own random numbers, in the main process."""

    def __init__(self, given):
        self.images = torch.cat([images for images, _ in given])
        self.labels = torch.cat([labels for _, labels in given])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, at):
        return self.images[at] + 0.1 * torch.randn(self.images[at].shape), self.labels[at]


@pytest.mark.parametrize("step", [3, 4, 5, 8, 9, 11])
@pytest.mark.parametrize("loader", ["list", "shuffled", "generator"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(stripes, tmp_path, step, loader):
    """Stopped after any step, the first and last of an epoch (of four or five steps of two batches) included."""
    given = stripes.workload.train
    if loader != "list":
        own = torch.Generator() if loader == "generator" else None
        given = torch.utils.data.DataLoader(Jitter(given), 28, shuffle=True, generator=own)
    workload = dataclasses.replace(stripes.workload, train=given)
    plan = Plan("finetune", 3, checkpoint_s=0, average=0.9, accumulate=2, checks=100)
    whole = copy.deepcopy(cut(stripes).module)
    expected = train(whole, workload, plan)

    class Enough(Exception):
        pass

    def stop(done, total, left, best):
        if done == step:
            raise Enough

    stopped = copy.deepcopy(cut(stripes).module)
    with pytest.raises(Enough):
        train(stopped, workload, plan, folder=tmp_path, report=stop)
    checkpoint = Checkpoint.read(tmp_path / FILE)
    assert checkpoint.facts["step"] == step - 1  # one step is lost, the one after which it was stopped
    resumed = copy.deepcopy(cut(stripes).module)
    found = train(resumed, workload, plan, folder=tmp_path)
    assert found.after == expected.after and found.best_step == expected.best_step and found.steps == expected.steps
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert not (tmp_path / FILE).exists()


@pytest.fixture
def ctrl_c():
    """As in a terminal: a shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("step", [3, 4, 8, 12])
def test_ctrl_c_loses_nothing(stripes, tmp_path, step):
    """The step that it comes in is finished and saved, though no checkpoint is due; the last step of all included."""
    plan = Plan("finetune", 3, checkpoint_s=3600, accumulate=2, checks=100)
    whole = copy.deepcopy(cut(stripes).module)
    train(whole, stripes.workload, plan)

    def stop(done, total, left, best):
        if done == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(cut(stripes).module), stripes.workload, plan, folder=tmp_path, report=stop, keep_checkpoint=True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert Checkpoint.read(tmp_path / FILE).facts["step"] == step
    resumed = copy.deepcopy(cut(stripes).module)
    train(resumed, stripes.workload, plan, folder=tmp_path)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


@pytest.mark.usefixtures("ctrl_c")
def test_the_second_ctrl_c_is_obeyed_at_once(stripes, tmp_path):
    reached = []

    def stop(done, total, left, best):
        signal.raise_signal(signal.SIGINT)
        reached.append(done)
        signal.raise_signal(signal.SIGINT)
        reached.append(done)

    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(cut(stripes).module), stripes.workload, Plan("finetune", 3), folder=tmp_path, report=stop)
    assert len(reached) == 1


@pytest.mark.usefixtures("ctrl_c")
def test_what_fails_of_ctrl_c_is_ctrl_c(stripes, tmp_path):
    """The processes of a loader hear Ctrl-C too and are gone then, which is no failure of the candidate."""

    def stop(done, total, left, best):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(cut(stripes).module), stripes.workload, Plan("finetune", 3), folder=tmp_path, report=stop)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_ctrl_c_is_ignored_it_stays_so(stripes, tmp_path):
    """In the background of a shell, under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(
            copy.deepcopy(cut(stripes).module), stripes.workload, Plan("finetune", 1), folder=tmp_path,
            report=lambda *_: signal.raise_signal(signal.SIGINT),
        )  # fmt: skip
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_of_another_plan_or_a_broken_one_is_not_used(stripes, tmp_path):
    module = copy.deepcopy(cut(stripes).module)
    Checkpoint({"plan": Plan("distill", 9).to_json(), "step": 5}, {"weights": module.state_dict()}).write(tmp_path / FILE)
    assert train(module, stripes.workload, Plan("finetune", 1), folder=tmp_path).steps == 8
    (tmp_path / FILE).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    assert train(module, stripes.workload, Plan("finetune", 1), folder=tmp_path).steps == 8


def test_sigkill_loses_one_checkpoint_interval_at_most(tmp_path):
    """A process that kills itself in the middle of a step, and one that goes on."""
    script = textwrap.dedent(
        f"""
        import copy, dataclasses, json, os, signal, sys
        from pathlib import Path
        import torch
        from hwprune import uniform_recipe
        from hwprune.pruning import Pruner
        from hwprune.recovery.plan import Plan
        from hwprune.recovery.training import train
        from tests.recovery.conftest import make
        calls, kill = 0, int(sys.argv[1])
        def loss(out, y):
            global calls
            calls += 1
            if calls == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return torch.nn.functional.cross_entropy(out, y)
        pruner = Pruner(dataclasses.replace(make(), loss=loss))
        module = pruner.prune(uniform_recipe(pruner, "channel", 0.5, criterion="l1", compensation="none")).module
        outcome = train(module, pruner.workload, Plan("finetune", 2, checkpoint_s=0), folder=Path({str(tmp_path)!r}))
        print(json.dumps([outcome.steps, calls, outcome.after.value]))
        """
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))

    def go(kill):
        return subprocess.run([sys.executable, "-c", script, str(kill)], cwd=root, capture_output=True, text=True, check=False)

    assert go(12).returncode == -signal.SIGKILL
    done = go(0)
    assert done.returncode == 0, done.stderr
    steps, calls, _ = json.loads(done.stdout)
    assert steps == 16 and calls == 5  # eleven steps were made and kept; the twelfth died


def test_metrics_where_less_is_better(stripes):
    scored = metrics.Metric("loss", lambda out, y: nn.functional.cross_entropy(out, y, reduction="none"), higher_is_better=False)
    judge = Validator(dataclasses.replace(stripes.workload, metric=scored))
    assert judge.better(0.1, than=0.2) and not judge.better(0.2, than=0.1)
