"""Files of checkpoints."""

from __future__ import annotations

import resource
import warnings

import pytest
import torch

from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.loop.checkpoint import FILE, Checkpoint
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import recover
from tests.recovery.helpers import Enough, masked, stop_after


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
    candidate = masked(stripes, 0.5)
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
            made = recover(stripes, masked(stripes, 0.5), Plan("finetune", 1, checkpoint_s=0), folder=tmp_path)
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
