"""Blocks without attention or MLP: what goes, what is left, and what the files then hold."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from hwprune.errors import RunError, UsageError
from hwprune.streaming import cached_onnx, influence, road, sublayers
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import first_block, llama, losses, whole


def data(words):
    return TextData(words, length=16, most=8, judged=4)


def without(folder, silent):
    """The dense model with branches that return zeros, put there by hand."""
    model = whole(folder)
    for kind, places in silent.items():
        for index in places:
            layer = model.model.layers[index]
            if kind == "attention":
                layer.self_attn.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
            else:
                layer.mlp.forward = torch.zeros_like
    return model


@pytest.mark.parametrize("kinds", [["attention"], ["mlp"], ["attention", "mlp"]], ids="+".join)
def test_a_block_without_a_branch_is_the_block_without_it(tmp_path, folder, words, kinds):
    block, states = first_block(folder, words, tmp_path)
    x = states.read(0)
    layer = block.layer
    y = x if "attention" in kinds else x + layer.self_attn(layer.input_layernorm(x), **block.given)[0]
    y = y if "mlp" in kinds else y + layer.mlp(layer.post_attention_layernorm(y))
    sublayers.silence(block, kinds, x)
    torch.testing.assert_close(block(x), y)


def test_influence_is_how_much_the_branch_turns_what_leaves(tmp_path, folder, words):
    block, states = first_block(folder, words, tmp_path)
    source = LanguageFolder(folder)
    given = [block.given] * source.depth
    found = influence.of_parts(source, given, states, tmp_path, ["layer", "mlp"])
    layer, total = block.layer, {"layer": 0.0, "mlp": 0.0}
    for window in range(len(states)):
        x = states.read(window)
        y = x + layer.self_attn(layer.input_layernorm(x), **block.given)[0]
        z = y + layer.mlp(layer.post_attention_layernorm(y))
        for kind, other in (("layer", x), ("mlp", y)):
            total[kind] += float((1 - functional.cosine_similarity(other, z, dim=-1)).mean()) / len(states)
    assert {kind: scores[0] for kind, scores in found.items()} == pytest.approx(total, rel=1e-4)
    assert all(len(scores) == source.depth for scores in found.values())


@pytest.mark.parametrize(
    "patterns",
    [[("attention", 0.34)], [("mlp", 0.34)], [("attention", 0.67), ("mlp", 0.34)], [("layer", 0.34), ("attention", 0.34)]],
    ids=str,
)
def test_the_folder_computes_what_the_model_without_them_does(tmp_path, folder, words, patterns):
    facts = road.prune_folder(folder, data(words), SweepPlan(patterns, "obs", "none"), tmp_path / "out", score=True)
    assert {kind: len(places) for kind, places in facts["silent"].items()} == {
        kind: round(3 * share) for kind, share in patterns if kind != "layer"
    }
    _, judged = data(words).read(folder)
    if len(facts["kept"]) == 3:
        wanted = without(folder, facts["silent"])
        assert facts["perplexity"] == pytest.approx(float(losses(wanted, judged).mean().exp()), rel=1e-5)
    gone = sum(
        sum(
            p.numel() for p in getattr(whole(folder).model.layers[0], {"attention": "self_attn", "mlp": "mlp"}[kind]).parameters()
        )
        * len(places)
        for kind, places in facts["silent"].items()
    )
    assert facts["params"] == sum(p.numel() for p in whole(tmp_path / "out").parameters()) - gone


def test_the_rest_is_pruned_and_repaired_beside_them(tmp_path, folder, words):
    plan = SweepPlan([("attention", 0.34), ("neuron", 0.25)], "obs", "obs")
    facts = road.prune_folder(folder, data(words), plan, tmp_path / "out", score=True)
    alone = SweepPlan([("attention", 0.34), ("neuron", 0.25)], "obs", "none")
    plain = road.prune_folder(folder, data(words), alone, tmp_path / "plain", score=True)
    assert whole(tmp_path / "out").config.intermediate_size == 36
    assert facts["silent"] == plain["silent"] and facts["errors"][0] < plain["errors"][0]
    masked = SweepPlan([("mlp", 0.34), ("unstructured", 0.5)], "sparsegpt", "obs")
    assert road.prune_folder(folder, data(words), masked, tmp_path / "masked")["generates"]


@pytest.mark.parametrize("pattern", ["attention", "layer"])
def test_what_is_left_makes_up_for_what_is_gone(tmp_path, words, pattern):
    """Whole blocks behind it are fitted to the dense stream, and come nearer to it on held-out windows; those that have lost their
    attention are not."""
    folder = llama(tmp_path / "dense", depth=4)
    model = whole(folder)
    with torch.no_grad():  # those that go: not the last
        for layer in model.model.layers[1:3]:
            layer.self_attn.o_proj.weight.mul_(0.3)
            layer.mlp.down_proj.weight.mul_(0.3)
    model.save_pretrained(str(folder))
    made = {
        how: road.prune_folder(
            folder, TextData(words, None, length=16, most=48, judged=4), SweepPlan([(pattern, 0.5)], "obs", how), tmp_path / how
        )
        for how in ("none", "obs")
    }
    assert made["none"]["kept"] == made["obs"]["kept"] and made["none"]["silent"] == made["obs"]["silent"]
    plain, repaired = (made[how]["errors"] for how in ("none", "obs"))
    dense, model = whole(folder).model.layers, whole(tmp_path / "obs").model.layers
    same = [
        all(
            torch.equal(mine, theirs) or not mine.any()
            for mine, theirs in zip(model[place].parameters(), dense[index].parameters(), strict=True)
        )
        for place, index in enumerate(made["obs"]["kept"])
    ]
    assert (made["obs"]["silent"].get("attention") or [i for i in range(4) if i not in made["obs"]["kept"]]) == [1, 2]
    first = 3 if pattern == "attention" else 1  # the first place whose block may be fitted
    assert all(same[:first]) and not same[first]
    assert repaired[:first] == plain[:first] and repaired[first] < plain[first]


@pytest.mark.parametrize("shares", [[("attention", 0.67)], [("attention", 0.34), ("mlp", 0.67)]], ids=str)
def test_the_onnx_file_leaves_them_out(tmp_path, folder, words, shares):
    """Smaller, with keys and values of what attends alone, and the same logits as the model without them in PyTorch."""
    import onnxruntime

    facts = road.prune_folder(folder, data(words), SweepPlan(shares, "obs", "none"), tmp_path / "out", onnx=True)
    path = tmp_path / "out" / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    attending = 3 - len(facts["silent"]["attention"])
    assert len(session.get_inputs()) == 1 + 2 * attending
    assert facts["cache_bytes_per_token"] == attending * 4 * 2 * 2 * 8
    ids = np.arange(2, 14)[None]
    kept = [np.zeros((1, 2, 0, 8), np.float32)] * (2 * attending)
    logits = session.run(None, dict(zip([one.name for one in session.get_inputs()], [ids, *kept], strict=True)))[0]
    with torch.no_grad():
        wanted = without(folder, facts["silent"])(torch.from_numpy(ids), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max())
    shapes = [tuple(one.dims) for one in onnx.load(str(path)).graph.initializer]
    assert shapes.count((32, 32)) == 2 * attending  # queries and outputs
    assert sum(set(shape) == {32, 48} for shape in shapes) == 3 * (3 - len(facts["silent"].get("mlp", [])))


def test_every_attention_may_go(tmp_path, folder, words):
    with pytest.raises(UsageError, match="keeps something else than keys and values"):
        road.prune_folder(folder, data(words), SweepPlan([("attention", 0.9)], "obs", "none"), tmp_path / "out", onnx=True)
    assert road.prune_folder(folder, data(words), SweepPlan([("attention", 0.9)], "obs", "none"), tmp_path / "two")["generates"]


@pytest.mark.parametrize("kind", ["Qwen3", "Gemma2", "Phi", "Mistral"])
def test_other_classes_lose_attention_too(tmp_path, words, kind):
    folder = llama(tmp_path / "dense", kind=kind, tied=False)
    facts = road.prune_folder(folder, data(words), SweepPlan([("attention", 0.34)], "obs", "none"), tmp_path / "out", onnx=True)
    assert facts["generates"] and facts["cache_bytes_per_token"] > 0


def test_what_is_no_branch_is_refused(tmp_path, folder, words):
    block, states = first_block(folder, words, tmp_path)
    plain = type(block.layer).forward
    block.layer.forward = lambda hidden, **given: 2 * plain(block.layer, hidden, **given)
    with pytest.raises(UsageError, match="adds more than attention and MLP"):
        sublayers.silence(block, ["mlp"], states.read(0))
    other, _ = first_block(folder, words, tmp_path)
    del other.layer.mlp
    with pytest.raises(UsageError, match="not one module each .attention: self_attn; mlp: none"):
        sublayers.names_of(other.layer)
    with pytest.raises(UsageError, match="attention=1: the fraction"):
        SweepPlan([("attention", 1.0)], "obs", "none")


def test_zeros_that_are_no_branch_are_found_out(folder, monkeypatch):
    model = whole(folder)
    with torch.no_grad():
        for parameter in model.model.layers[1].self_attn.parameters():
            parameter.zero_()
    monkeypatch.setattr(sublayers, "SAME", -1.0)
    with pytest.raises(RunError, match="without the branches whose weights are zero"):
        sublayers.silence_zeros(model, "model.layers")


def test_a_dense_model_keeps_everything(folder):
    assert sublayers.silence_zeros(whole(folder), "model.layers") == 0
    assert cached_onnx.cache_shape(cached_onnx.loaded(folder)).heads == (2,) * 6


def test_hidden_states_are_left_as_they_were(tmp_path, folder, words):
    block, states = first_block(folder, words, tmp_path)
    before = states.read(0).clone()
    influence.of_parts(LanguageFolder(folder), [block.given] * 3, states, tmp_path, ["attention"])
    assert torch.equal(states.read(0), before) and isinstance(states, HiddenStates)
