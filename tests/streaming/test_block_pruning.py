"""One block: cut and fitted to the dense stream, or left as it was cut."""

from __future__ import annotations

import torch

from hwprune.streaming import block_pruning
from hwprune.streaming.block_pruning import BlockPruner, block_tensors
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.refitting import kept_rows
from hwprune.streaming.sweep_plan import SweepPlan
from tests.streaming.helpers import first_block

COUNT = 60
HELD = list(range(3, COUNT, 4))


def streams(folder, words, tmp_path):
    """A block, what enters it in the dense model, what enters it after pruned blocks, and what leaves the dense one."""
    block, dense = first_block(folder, words, tmp_path, count=COUNT)
    shape = (COUNT, *dense.read(0).shape[1:])
    turned, wanted = (HiddenStates(tmp_path / name, shape, torch.float32) for name in ("turned", "wanted"))
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        for window in range(COUNT):
            turned.write(window, 0.8 * dense.read(window) + 0.4 * dense.read(window) @ turn)
            wanted.write(window, block(dense.read(window)))
    return block, dense, turned, wanted


def error(module, inputs, wanted):
    with torch.no_grad():
        return sum(float((module(inputs.read(w)) - wanted.read(w)).square().sum()) for w in HELD)


def test_a_cut_block_is_fitted_to_the_dense_stream(folder, words, tmp_path, monkeypatch):
    plan = SweepPlan([("neuron", 0.25)], "obs", "obs")
    fitted = [w for w in range(COUNT) if w not in HELD]
    errors = []
    for refits in (True, False):
        block, dense, turned, wanted = streams(folder, words, tmp_path / str(refits))
        if not refits:
            monkeypatch.setattr(block_pruning, "refit", lambda *_: [])
        made, _ = BlockPruner(plan, "model.layers.0", fitted, HELD).prune(block, turned, dense, wanted)
        assert block_tensors(made)["mlp.down_proj.weight"].shape == (32, 36)
        errors.append(error(made, turned, wanted))
    assert errors[0] < 0.9 * errors[1], errors


def test_masks_beside_a_cut_stay(folder, words, tmp_path):
    """A fit would fill the zeros."""
    block, dense, turned, wanted = streams(folder, words, tmp_path)
    plan = SweepPlan([("neuron", 0.25), ("2:4", 0.0)], "obs", "obs")
    fitted = [w for w in range(COUNT) if w not in HELD]
    made, _ = BlockPruner(plan, "model.layers.0", fitted, HELD).prune(block, turned, dense, wanted)
    for name, tensor in block_tensors(made).items():
        if tensor.ndim == 2:
            assert bool(((tensor.view(-1, 4) == 0).sum(1) >= 2).all()), name


def test_excluded_layers_are_not_fitted_either(folder, words, tmp_path):
    block, dense, turned, wanted = streams(folder, words, tmp_path)
    before = block_tensors(block)
    plan = SweepPlan([("neuron", 0.25)], "obs", "obs", ("*.self_attn.*",))
    fitted = [w for w in range(COUNT) if w not in HELD]
    made, _ = BlockPruner(plan, "model.layers.0", fitted, HELD).prune(block, turned, dense, wanted)
    for name, tensor in block_tensors(made).items():
        if "self_attn" in name:
            assert torch.equal(tensor, before[name]), name


def test_without_compensation_nothing_is_fitted(folder, words, tmp_path):
    block, dense, turned, wanted = streams(folder, words, tmp_path)
    before = block_tensors(block)
    plan = SweepPlan([("neuron", 0.25)], "l2", "none")
    made, left_out = BlockPruner(plan, "model.layers.0", [0, 1, 2], [3]).prune(block, turned, dense, wanted)
    now = block_tensors(made)
    kept = kept_rows(now["mlp.gate_proj.weight"], before["mlp.gate_proj.weight"])
    assert kept is not None and torch.equal(now["mlp.down_proj.weight"], before["mlp.down_proj.weight"][:, kept])
    assert torch.equal(now["self_attn.q_proj.weight"], before["self_attn.q_proj.weight"]) and left_out == []


def test_a_class_that_can_not_hold_the_cut_keeps_the_graph(folder, words, tmp_path, monkeypatch):
    block, dense, turned, wanted = streams(folder, words, tmp_path)
    called = []
    monkeypatch.setattr(block_pruning, "refit", lambda *given: called.append(given))
    monkeypatch.setattr(type(block.layer.self_attn), "forward", lambda *_a, **_b: 1 / 0, raising=True)
    pruner = BlockPruner(SweepPlan([("neuron", 0.25)], "obs", "obs"), "model.layers.0", [0, 1, 2], [3])
    monkeypatch.setattr(pruner, "_cut", lambda block, *_: (torch.nn.Identity(), []))
    made, _ = pruner.prune(block, turned, dense, wanted)
    assert isinstance(made, torch.nn.Identity) and not called


def test_which_rows_are_left():
    dense = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert kept_rows(dense[[1, 4, 5]], dense).tolist() == [1, 4, 5]
    assert kept_rows(2 * dense, dense).tolist() == [0, 1, 2, 3, 4, 5]  # all are there, whatever they are now
    assert kept_rows(2 * dense[:3], dense) is None and kept_rows(dense[:3, :2], dense) is None
    dense[2] = dense[0]
    assert kept_rows(dense[:2], dense) is None  # two rows are alike: which is left can't be told
