"""Checkpoints: a training goes on as if it had not been stopped."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hwprune.recovery.loop.checkpoint import FILE, Checkpoint
from hwprune.recovery.loop.run import train
from hwprune.recovery.plan import Plan
from tests.recovery.helpers import cut


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
        from hwprune.recovery.loop.run import train
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
    root = Path(__file__).resolve().parents[3]

    def go(kill):
        return subprocess.run([sys.executable, "-c", script, str(kill)], cwd=root, capture_output=True, text=True, check=False)

    assert go(12).returncode == -signal.SIGKILL
    done = go(0)
    assert done.returncode == 0, done.stderr
    steps, calls, _ = json.loads(done.stdout)
    assert steps == 16 and calls == 5  # eleven steps were made and kept; the twelfth died
