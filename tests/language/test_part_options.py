"""Damages of single choices, against whole models of transformers that are changed by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hwprune.errors import RunError, UsageError
from hwprune.language import part_options
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


def test_kept_sizes_are_what_is_stored(solved):
    stored = load_file(solved.store.place / "0001-mlp-32.safetensors")
    assert {key: tuple(x.shape) for key, x in stored.items()} == {
        "mlp.gate_proj.weight": (32, 32), "mlp.up_proj.weight": (32, 32), "mlp.down_proj.weight": (32, 32)
    }  # fmt: skip
    stored = load_file(solved.store.place / "0001-attention-1.safetensors")
    assert stored["self_attn.k_proj.weight"].shape == (8, 32) and stored["self_attn.q_proj.weight"].shape == (16, 32)


def test_a_killed_run_does_not_solve_again(solved, tmp_path, monkeypatch):
    names = [one.name for one in solved.choices.all if one.pattern != one.part]
    (tmp_path / "options.json").write_text(json.dumps({"choices": names}))
    monkeypatch.setattr(part_options, "entering", None)
    part_options.solve_options(solved.source, solved.texts.fitted, solved.choices, PLAN, solved.store, tmp_path)


def test_choices_of_another_version_are_not_gone_on_with(solved, tmp_path):
    (tmp_path / "options.json").write_text(json.dumps({"choices": ["attention-1"]}))
    with pytest.raises(UsageError, match="another version"):
        part_options.solve_options(solved.source, solved.texts.fitted, solved.choices, PLAN, solved.store, tmp_path)


def test_the_disk_that_choices_need_is_known_before(solved):
    own = dict(solved.source.block(1).named_parameters())
    samples = {one.name: solved.store.tensors(1, [one], own) for one in solved.choices.all}
    files = list(solved.store.place.glob("0001-*.safetensors"))
    stored = sum(4 * x.numel() for file in files for x in load_file(file).values())
    assert part_options.stored_bytes(samples, solved.choices, solved.store) == stored > 0


def test_a_disk_that_fills_up_is_told(solved, tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    store = part_options.PartStore(tmp_path / "options", solved.store.lengths, solved.store.modules)
    with pytest.raises(RunError, match=r"0000-attention-1.*No space left.*--resume"):
        part_options.solve_options(solved.source, solved.texts.fitted, solved.choices, PLAN, store, tmp_path)


def test_what_a_killed_run_has_written_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(part_options.shutil, "disk_usage", lambda _place: SimpleNamespace(free=1000))
    (tmp_path / "options").mkdir()
    part_options.check_room(tmp_path, 900)
    with pytest.raises(UsageError, match=r"needs about 1.50 kB .* 1.00 kB are free.*--resume"):
        part_options.check_room(tmp_path, 1500)
    (tmp_path / "options" / "0000-mlp-32.safetensors").write_bytes(bytes(600))
    part_options.check_room(tmp_path, 1500)
    (tmp_path / "options.json").write_text("{}")
    part_options.check_room(tmp_path, 10_000)  # all choices are there
