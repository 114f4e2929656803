"""Damages of single choices, against whole models of transformers that are changed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hwprune.language import part_damages
from hwprune.language.part_damages import divergence
from tests.language.conftest import PLAN
from tests.streaming.helpers import whole


class Nothing(nn.Module):
    """A branch that adds nothing."""

    def __init__(self, pair):
        super().__init__()
        self.pair = pair

    def forward(self, hidden=None, *_, hidden_states=None, **__):
        zeros = torch.zeros_like(hidden if hidden is not None else hidden_states)
        return (zeros, None) if self.pair else zeros


def changed(solved, allocation):
    """The model of transformers with the solved tensors put in by hand."""
    model = whole(solved.folder)
    for index, names in allocation.items():
        layer = model.model.layers[index]
        for name in names:
            if name == "attention-0":
                layer.self_attn = Nothing(pair=True)
            elif name == "mlp-0":
                layer.mlp = Nothing(pair=False)
            else:
                for key, tensor in load_file(solved.store.place / f"{index:04d}-{name}.safetensors").items():
                    owner, _, last = key.rpartition(".")
                    setattr(layer.get_submodule(owner), last, nn.Parameter(tensor))
    return model


@torch.no_grad()
def words_of(model, ids):
    return model(ids, use_cache=False).logits.log_softmax(-1).double()


def by_hand(solved, allocation, ids):
    wanted, found = words_of(whole(solved.folder), ids), words_of(changed(solved, allocation), ids)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("name", ["attention-1", "attention-0", "mlp-32", "mlp-16", "mlp-0"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_damage_is_the_divergence_of_the_whole_model_with_that_choice(solved, index, name):
    assert solved.damages[index][name] == pytest.approx(by_hand(solved, {index: [name]}, solved.texts.looked), rel=1e-3)


def test_each_block_has_each_choice_and_kept_sizes_are_what_is_stored(solved):
    assert [set(one) for one in solved.damages] == [{"attention-1", "attention-0", "mlp-32", "mlp-16", "mlp-0"}] * 3
    stored = load_file(solved.store.place / "0001-mlp-32.safetensors")
    assert {key: tuple(x.shape) for key, x in stored.items()} == {
        "mlp.gate_proj.weight": (32, 32), "mlp.up_proj.weight": (32, 32), "mlp.down_proj.weight": (32, 32)
    }  # fmt: skip
    stored = load_file(solved.store.place / "0001-attention-1.safetensors")
    assert stored["self_attn.k_proj.weight"].shape == (8, 32) and stored["self_attn.q_proj.weight"].shape == (16, 32)


def test_a_killed_run_does_not_look_again(solved, tmp_path, monkeypatch):
    (tmp_path / "damages.json").write_text(json.dumps({"blocks": [{"mlp-0": [1.0, 2.0]}]}))
    monkeypatch.setattr(part_damages, "entering", None)
    found = part_damages.part_damages(solved.source, solved.texts, solved.choices, PLAN, solved.store, tmp_path)
    assert found == [{"mlp-0": 1.5}]


def draw(noise, blocks=60, windows=4, spread=0.7):
    """Damages whose truth is known, in different blocks, with noise that is a share of them."""
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(-4, spread, blocks))
    seen = truth[:, None] * np.exp(rng.normal(-(noise**2) / 2, noise, (blocks, windows)))
    return truth, [{"mlp-32": list(row)} for row in seen]


@pytest.mark.parametrize("noise", [0.5, 1.0, 1.5])
def test_shrunk_damages_are_nearer_to_the_truth_than_means(noise):
    truth, seen = draw(noise)
    means = np.log([np.mean(one["mlp-32"]) for one in seen])
    found = np.log([one["mlp-32"] for one in part_damages.shrunk(seen)])
    assert np.square(found - np.log(truth)).mean() < np.square(means - np.log(truth)).mean()
    # What looks cheapest is not taken for cheaper than it is as much as before.
    cheap = means.argsort()[:15]
    assert (found - np.log(truth))[cheap].mean() > (means - np.log(truth))[cheap].mean()


def test_without_noise_nothing_is_shrunk_and_order_stays():
    truth, seen = draw(0.0)
    assert [one["mlp-32"] for one in part_damages.shrunk(seen)] == pytest.approx(list(truth))
    _, seen = draw(1.0)
    means = [np.mean(one["mlp-32"]) for one in seen]
    assert np.argsort(means).tolist() == np.argsort([one["mlp-32"] for one in part_damages.shrunk(seen)]).tolist()


def test_what_is_ruined_or_nothing_stays_as_it_is():
    seen = [{"mlp-0": [math.inf, 1.0]}, {"mlp-0": [0.0, 0.0]}, *({"mlp-0": [0.5, 0.6 + 0.1 * i]} for i in range(6))]
    found = [one["mlp-0"] for one in part_damages.shrunk(seen)]
    assert found[0] == math.inf and found[1] == 0.0 and all(0.5 <= x <= 0.9 for x in found[2:])


def test_a_divergence_that_is_no_number_is_infinite():
    even = torch.full((2, 4), 0.25).log()
    assert divergence(even, even) == 0
    assert divergence(even, torch.full((2, 4), math.nan)) == math.inf
