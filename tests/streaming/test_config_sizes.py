"""Configurations are found from shapes alone; the shapes here come from models made with the right ones."""

from __future__ import annotations

import copy

import pytest
import transformers

from hwprune.errors import UsageError
from hwprune.streaming.config_sizes import fitted, with_depth

LLAMA = {
    "vocab_size": 50, "hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip


def shapes(kind, config):
    return {name: tuple(x.shape) for name, x in kind(config).named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize(
    "change",
    [
        {"intermediate_size": 72},
        {"num_key_value_heads": 3, "num_attention_heads": 6},
        {"num_attention_heads": 4},
        {"hidden_size": 48},
        {"hidden_size": 40, "intermediate_size": 33, "num_key_value_heads": 2, "num_attention_heads": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral"])
def test_sizes_are_found(name, change):
    kind, make = getattr(transformers, f"{name}ForCausalLM"), getattr(transformers, f"{name}Config")
    wanted = make(**{**LLAMA, **change})
    found = fitted(kind, make(**LLAMA), shapes(kind, wanted))
    for key in LLAMA:
        assert getattr(found, key) == getattr(wanted, key), key


def test_neurons_of_another_family_are_found():
    kind, make = transformers.GPT2LMHeadModel, transformers.GPT2Config
    base = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "n_inner": 64}
    wanted = make(**{**base, "n_inner": 40})
    assert fitted(kind, make(**base), shapes(kind, wanted)).n_inner == 40


def test_sizes_of_unusual_names_are_found():
    """Experts have numbers of their own; that of the expert which all tokens take is told from that of the others."""
    kind, make = transformers.Qwen3NextForCausalLM, transformers.Qwen3NextConfig
    base = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    }  # fmt: skip
    wanted = make(**{**base, "shared_expert_intermediate_size": 12})
    found = fitted(kind, make(**base), shapes(kind, wanted))
    assert (found.shared_expert_intermediate_size, found.moe_intermediate_size, found.intermediate_size) == (12, 16, 48)


def test_layers_of_different_sizes_are_told():
    kind, config = transformers.LlamaForCausalLM, transformers.LlamaConfig(**LLAMA)
    wanted = shapes(kind, config)
    for name in ("gate_proj", "up_proj"):
        wanted[f"model.layers.1.mlp.{name}.weight"] = (48, 96)
    wanted["model.layers.1.mlp.down_proj.weight"] = (96, 48)
    with pytest.raises(UsageError, match="intermediate_size would have to be 48 and 112: the layers keep different sizes"):
        fitted(kind, config, wanted)


def test_dropped_blocks_are_written_down():
    config = transformers.Qwen2Config(**{**LLAMA, "num_hidden_layers": 4})
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config.layer_types = copy.copy(kinds)
    found = with_depth(config, [0, 3])
    assert found.num_hidden_layers == 2 and found.layer_types == ["full_attention", "sliding_attention"]
    assert config.num_hidden_layers == 4 and config.layer_types == kinds
