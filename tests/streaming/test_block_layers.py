"""Which layers a block has, in which order they run, and what they are given."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hwprune.streaming.block_layers import in_order, input_of, linears
from tests.streaming.helpers import first_block, seen_by


def test_layers_are_grouped_by_what_they_read(tmp_path, folder, words):
    block, states = first_block(folder, words, tmp_path)
    names = [[linear.name.split(".")[1] for linear in group] for group in in_order(block, states.read(0))]
    assert names == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_an_input_is_what_a_whole_run_gives(tmp_path, folder, words):
    block, states = first_block(folder, words, tmp_path)
    for linear in linears(block):
        found = input_of(block, linear, states.read(2))
        assert torch.equal(found.flatten(0, -2), seen_by(block, states, linear.name.removesuffix(".weight"), [2]))


def test_weights_that_lie_across(tmp_path, folder, words):
    """transformers' Conv1D holds (in, out)."""
    block, _ = first_block(folder, words, tmp_path)
    block.layer.other = Conv1D(5, 32)
    block.layer.norm = nn.LayerNorm(32)
    (other,) = [linear for linear in linears(block) if linear.name == "other.weight"]
    assert other.weight.shape == (5, 32) and not any("norm" in linear.name for linear in linears(block))
    new = torch.randn(5, 32)
    other.write(new)
    assert torch.equal(block.layer.other.weight, new.t())
    unit = other.unit()
    assert torch.equal(unit.weights["other.weight"], new) and unit.size == 160
