"""A pruned model taught by the dense one: divergences by hand, what changes in the folder, and what must not."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from hwprune.errors import UsageError
from hwprune.streaming import distilling, road
from hwprune.streaming.distilling import Targets, distil, tokens_of
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData, windows
from tests.streaming.helpers import whole


def test_the_divergence_of_all_words_is_kl(tmp_path):
    dense, other = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0)).unbind()
    targets = Targets(tmp_path / "all", 1, 5, 30)
    targets.write(0, dense)
    p, q = dense.double().log_softmax(-1), other.double().log_softmax(-1)
    assert float(targets.divergence(0, other)) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-4)
    assert float(targets.divergence(0, dense)) == pytest.approx(0, abs=1e-5)


def test_words_beyond_the_likeliest_count_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(distilling, "LIKELIEST", 3)
    dense, other = torch.randn(2, 1, 9, generator=torch.Generator().manual_seed(1)).unbind()
    targets = Targets(tmp_path / "some", 1, 1, 9)
    targets.write(0, dense)
    p, q = dense[0].double().softmax(-1), other[0].double().softmax(-1)
    order = p.argsort(descending=True)
    pairs = [(float(p[i]), float(q[i])) for i in order[:3]] + [(float(p[order[3:]].sum()), float(q[order[3:]].sum()))]
    wanted = sum(a * torch.log(torch.tensor(a / b, dtype=torch.float64)) for a, b in pairs)
    assert float(targets.divergence(0, other)) == pytest.approx(float(wanted), abs=1e-5)


@pytest.fixture(scope="module")
def pruned(folder, words, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "out"
    plan = SweepPlan((), "l2", "none", by_block=({"neuron": 0.5}, {"neuron": 0.5, "attention": 1}, {"neuron": 0.5}))
    road.prune_folder(folder, TextData(words, length=16, most=8, judged=4), plan, out)
    return out


def stored(place):
    return {name: x for path in place.glob("*.safetensors") for name, x in load_file(path).items()}


def test_what_was_learned_is_in_the_folder_and_the_rest_as_it_was(tmp_path, folder, words, pruned):
    place = shutil.copytree(pruned, tmp_path / "copy")
    ids, before = windows(folder, words, 16)[:40], stored(place)
    told = distil(place, LanguageFolder(folder), ids, 40 * 16, tmp_path / "work", rate=3e-3)
    assert told.kept and told.after < 0.9 * told.before and told.tokens == 40 * 16
    after = stored(place)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    assert not after["model.layers.1.self_attn.q_proj.weight"].any()  # zeros stand for attention that is gone
    # The told divergence is that of the folder: the dense model's and its own words on the windows that took no part.
    held = ids[distilling.HELD_EVERY - 1 :: distilling.HELD_EVERY]
    with torch.no_grad():
        p, q = (whole(one)(held, use_cache=False).logits.double().log_softmax(-1) for one in (folder, place))
    assert told.after == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=0.02)


def test_what_does_not_help_windows_that_took_no_part_is_left_out(tmp_path, folder, words, pruned):
    place = shutil.copytree(pruned, tmp_path / "copy")
    before = stored(place)
    told = distil(place, LanguageFolder(folder), windows(folder, words, 16)[:20], 64, tmp_path / "work", rate=30.0)
    assert not told.kept and told.after > told.before
    assert all(torch.equal(x, before[name]) for name, x in stored(place).items())


def test_held_windows_teach_nothing(tmp_path, folder, words, pruned, monkeypatch):
    """With other windows in the places of the held ones, the same is learned."""
    found = []
    ids = windows(folder, words, 16)[:24]
    for held in (ids[11], ids[11].flip(0)):
        place = shutil.copytree(pruned, tmp_path / str(len(found)))
        one = ids.clone()
        one[11] = held
        told = [0.5, 1.0]
        monkeypatch.setattr(distilling, "_held_out", lambda *_, told=told: told.pop())
        distil(place, LanguageFolder(folder), one, 24 * 16, tmp_path / f"work{len(found)}")
        found.append(stored(place))
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


def test_the_road_tells_of_it(tmp_path, folder, words):
    data = TextData(words, length=16, most=8, judged=4)
    facts = road.prune_folder(
        folder, data, SweepPlan([("neuron", 0.5)], "l2", "none"), tmp_path / "out", distil_tokens=500, score=True
    )
    assert facts["distilled"]["tokens"] >= 500 and {"before", "after", "kept", "seconds"} <= set(facts["distilled"])
    assert facts["distilled"]["kept"] and facts["perplexity"] < facts["untaught_perplexity"]


@pytest.mark.parametrize(("text", "count"), [("distill:500", 500), ("distill:100k", 100_000), ("distill:2M", 2_000_000)])
def test_tokens(text, count):
    assert tokens_of(text) == count


@pytest.mark.parametrize("text", ["distill", "distill:", "distill:k", "finetune:2", "distill:-5", "distill:1.5k"])
def test_no_tokens(text):
    with pytest.raises(UsageError, match="distill:TOKENS"):
        tokens_of(text)
