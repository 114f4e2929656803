"""Masks in the order in which layers run: what each layer is given comes of pruned ones."""

from __future__ import annotations

import copy

import torch
import transformers

from hwprune import patterns
from hwprune.layers.statistics import LayerStatistics
from hwprune.methods import method
from hwprune.streaming.block_masks import BlockMasks
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.input_sums import BlockInputs
from tests.streaming.helpers import first_block, llama, seen_by

HALF = patterns.get("unstructured")


def run(block, states, criterion, compensation, wanted=lambda _: True, pattern=HALF, level=0.5):
    assert BlockMasks.can(block, method.get(criterion), compensation)
    masks = BlockMasks(BlockInputs(block, states, [0, 1, 2, 4, 5], [3]), compensation)
    return masks, masks.run(method.get(criterion), pattern, level, wanted)


def test_each_layer_is_scored_by_what_the_pruned_ones_before_it_make(tmp_path, folder, words):
    """Wanda by hand: |w| times the norm of the input, for each row the smaller half goes."""
    block, states = first_block(folder, words, tmp_path)
    dense = {name: p.detach().clone() for name, p in block.layer.named_parameters() if p.ndim == 2}
    row = patterns.get("unstructured:row")
    run(block, states, "wanda", "none", pattern=row)
    for name, before in dense.items():
        inputs = seen_by(block, states, name.removesuffix(".weight"), range(6))
        scores = before.abs() * inputs.square().sum(0).sqrt()
        keep = torch.zeros_like(before, dtype=torch.bool)
        keep.scatter_(1, scores.argsort(1)[:, before.shape[1] // 2 :], True)
        assert torch.equal(block.layer.get_parameter(name), before * keep), name


def test_repairs_are_fitted_to_those_inputs_too(tmp_path, folder, words):
    block, states = first_block(folder, words, tmp_path)
    dense = {name: p.detach().clone() for name, p in block.layer.named_parameters() if p.ndim == 2}
    masks, plain = run(block, states, "sparsegpt", "obs")
    for group in masks.groups:
        for linear in group:
            if linear.name in plain:
                continue
            inputs = seen_by(block, states, linear.name.removesuffix(".weight"), range(6))
            with torch.no_grad():
                now = linear.module.weight.clone()
                linear.write(dense[linear.name])  # the unit is made of the dense weight
                statistics = {linear.name: LayerStatistics.of_inputs(inputs)}
                (option,) = method.solve(linear.unit(), statistics, "sparsegpt", (0.5,), "unstructured", "obs")
                linear.module.weight.copy_(now)
            torch.testing.assert_close(now, option.weights[linear.name], rtol=2e-2, atol=2e-3)
    assert len(plain) < 7


def test_a_repair_that_hurts_an_unseen_window_is_left_out(tmp_path, folder, words):
    """The layer's inputs in the held-out window lie in directions that the others don't have."""
    block, states = first_block(folder, words, tmp_path)
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(1, 1, states.read(0).shape[-1], generator=generator)
    for window in range(6):  # all rows alike but for a little noise: nothing is known of the other directions
        states.write(window, few + 0.01 * torch.randn(states.read(0).shape, generator=generator))
    states.write(3, torch.randn(states.read(0).shape, generator=generator))
    before = block.layer.get_parameter("self_attn.q_proj.weight").detach().clone()
    _, plain = run(block, states, "sparsegpt", "obs", lambda name: "q_proj" in name)
    now = block.layer.get_parameter("self_attn.q_proj.weight")
    changed = (now != before) & (now != 0)
    assert bool(changed.any()) == ("self_attn.q_proj.weight" not in plain)
    dense_error = float(((now - before) @ seen_by(block, states, "self_attn.q_proj", [3]).T).square().sum())
    masked_error = float(((before * (now != 0) - before) @ seen_by(block, states, "self_attn.q_proj", [3]).T).square().sum())
    assert dense_error <= masked_error * 1.0001


def test_only_wanted_layers_change(tmp_path, folder, words):
    block, states = first_block(folder, words, tmp_path)
    before = {name: p.detach().clone() for name, p in block.layer.named_parameters()}
    run(block, states, "wanda", "none", lambda name: name.startswith("mlp."))
    changed = {name for name, p in block.layer.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")}


def test_weights_that_lie_across_are_masked_in_their_own_order(tmp_path, words):
    """GPT-2's layers hold (in, out)."""
    path = llama(tmp_path / "tokens")  # for its tokenizer
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=62, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(str(path))
    block, states = first_block(path, words, tmp_path)
    masks, _ = run(block, states, "wanda", "none", pattern=patterns.get("2:4"), level=None)
    weight = block.layer.get_parameter("mlp.c_fc.weight")
    assert weight.shape == (32, 128) and [linear.transposed for group in masks.groups for linear in group] == [True] * 4
    zeros = (weight.t() == 0).view(128, 8, 4).sum(-1)
    assert bool((zeros == 2).all())


def test_what_is_more_than_linear_layers_of_inputs_is_left_to_the_graph(tmp_path, folder, words):
    block, _ = first_block(folder, words, tmp_path)
    assert not BlockMasks.can(block, method.get("taylor"), "none")
    assert not BlockMasks.can(block, method.get("wanda"), "obs+sequential")
    block.layer.experts = torch.nn.Parameter(torch.zeros(2, 3, 4))
    assert not BlockMasks.can(block, method.get("wanda"), "none")


def test_a_repaired_layer_aims_at_what_the_dense_one_makes_of_its_own_inputs(tmp_path, folder, words):
    """Noise entered before the block: with the dense inputs beside it, the block's outputs come nearer to the dense ones."""
    ids = 60
    errors = []
    for beside in (False, True):
        block, dense = first_block(folder, words, tmp_path / str(beside), count=ids)
        wanted = torch.cat([block(dense.read(window)) for window in range(ids)])
        noisy = HiddenStates(tmp_path / str(beside) / "noisy", (ids, *dense.read(0).shape[1:]), torch.float32)
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q  # what came before has turned the stream a little
        for window in range(ids):
            noisy.write(window, 0.8 * dense.read(window) + 0.4 * dense.read(window) @ turn)
        held = range(3, ids, 4)
        aim = (copy.deepcopy(block), dense) if beside else ()
        masks = BlockMasks(BlockInputs(block, noisy, [w for w in range(ids) if w not in held], held, *aim), "obs")
        masks.run(method.get("sparsegpt"), HALF, 0.5, lambda _: True)
        found = torch.cat([block(noisy.read(window)) for window in held])
        errors.append(float((found - wanted[list(held)]).square().mean()))
    assert errors[1] < 0.9 * errors[0], errors


def test_without_anything_to_aim_at_the_targets_are_the_dense_weights(tmp_path, folder, words):
    """Where both streams are one, the first layers' targets don't move."""
    made = []
    for beside in (False, True):
        block, states = first_block(folder, words, tmp_path / str(beside))
        aim = (copy.deepcopy(block), states) if beside else ()
        masks = BlockMasks(BlockInputs(block, states, [0, 1, 2, 4, 5], [3], *aim), "obs")
        masks.run(method.get("sparsegpt"), HALF, 0.5, lambda name: "q_proj" in name)
        made.append(block.layer.get_parameter("self_attn.q_proj.weight").detach().clone())
    torch.testing.assert_close(*made)
