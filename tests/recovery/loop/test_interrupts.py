"""Ctrl-C in a training."""

from __future__ import annotations

import copy
import signal

import pytest
import torch

from hwprune.recovery.loop.checkpoint import FILE, Checkpoint
from hwprune.recovery.loop.run import train
from hwprune.recovery.plan import Plan
from tests.recovery.helpers import cut

pytestmark = pytest.mark.alone


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
