"""A model with a narrower stream: what goes, what is left, and what it computes."""

from __future__ import annotations

import pytest
import torch
import transformers

from hwprune.errors import UsageError
from hwprune.streaming import config_sizes, road, width
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep import Sweep
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import llama, whole

DEAD = [1, 6, 7, 13, 20, 21, 28, 31]


def data(words):
    return TextData(words, length=16, most=8, judged=4)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def with_dead_channels(request, tmp_path):
    """A model to whose stream some channels bring nothing."""
    path = llama(tmp_path / "m", tied=request.param)
    model = whole(path)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, DEAD] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[DEAD] = 0
            layer.mlp.down_proj.weight[DEAD] = 0
    model.save_pretrained(str(path))
    return path


@pytest.mark.parametrize("compensation", ["none", "obs"])
def test_channels_that_carry_nothing_go_first_and_nothing_changes(tmp_path, with_dead_channels, words, compensation):
    """Norms divide by the mean over fewer channels then: without their factors every output would be another."""
    plan = SweepPlan([("hidden", 0.25)], "obs", compensation)
    facts = road.prune_folder(with_dead_channels, data(words), plan, tmp_path / "out", score=True)
    ids, judged = data(words).read(with_dead_channels)
    before, after = whole(with_dead_channels), whole(tmp_path / "out")
    kept = [channel for channel in range(32) if channel not in DEAD]
    assert torch.equal(after.model.embed_tokens.weight, before.model.embed_tokens.weight[:, kept])
    with torch.no_grad():
        torch.testing.assert_close(after(judged).logits, before(judged).logits, rtol=1e-3, atol=1e-3)
    assert facts["perplexity"] == pytest.approx(facts["dense_perplexity"], rel=1e-3)
    assert max(facts["errors"]) < 1e-4
    assert len(ids) == 8


def norms():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

    return [torch.nn.LayerNorm(16), LlamaRMSNorm(16), GemmaRMSNorm(16), NemotronLayerNorm1P(16)]  # two add 1 to their weight


@pytest.mark.parametrize("norm", norms(), ids=lambda norm: type(norm).__name__)
def test_norms_are_made_stronger_whatever_they_add_to_their_weight(norm):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(16))
        bias = getattr(norm, "bias", None)
        bias = torch.zeros(16) if bias is None else bias
        x = torch.randn(2, 5, 16)
        before = norm(x) - bias
        width._strengthen(norm, 0.8)
        torch.testing.assert_close(norm(x) - bias, 0.8 * before, rtol=1e-4, atol=1e-4)


def test_what_a_norm_should_make_is_compared_without_its_bias():
    norm = torch.nn.LayerNorm(8)
    torch.nn.init.constant_(norm.bias, 5.0)
    sums = width._Products(norm)
    made = torch.randn(1, 4, 8)
    sums.add(made + 5, 0.7 * made + 5)
    assert sums.factor == pytest.approx(0.7)


def test_a_pattern_that_is_given_twice_is_refused():
    with pytest.raises(UsageError, match="hidden is given twice"):
        SweepPlan([("hidden", 0.1), ("hidden", 0.4)], "obs", "obs")


def test_a_repair_brings_blocks_nearer_to_the_dense_stream(tmp_path, folder, words):
    errors = {
        compensation: road.prune_folder(
            folder, data(words), SweepPlan([("hidden", 0.25)], "obs", compensation), tmp_path / compensation
        )["errors"]
        for compensation in ("none", "obs")
    }
    assert all(repaired < plain for repaired, plain in zip(errors["obs"], errors["none"], strict=True))


def test_a_stopped_sweep_goes_on_with_the_same_channels(tmp_path, folder, words):
    ids, _ = data(words).read(folder)
    plan = SweepPlan([("hidden", 0.25)], "obs", "obs")

    def stop(_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(LanguageFolder(folder), ids, plan, tmp_path / "stopped").run(stop)
    sweeps = [Sweep(LanguageFolder(folder), ids, plan, tmp_path / name) for name in ("stopped", "whole")]
    first, second = (sweep.run() for sweep in sweeps)
    assert first == second
    assert len(first.width) == 24
    ours, theirs = (sweep.other_tensors(first) for sweep in sweeps)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_widths_that_the_class_takes_are_chosen(tmp_path):
    """Llama wants a multiple of its heads: of 48 channels and 6 heads 38 can't stay, nor 40 (8 divides it, 6 does not)."""
    source = LanguageFolder(llama(tmp_path / "m", hidden=48, heads=6, kv=3, head_dim=8))
    dims = width.dims_of(source)
    assert width.count_near(source, dims, 38, 8) == 36
    assert width.count_near(source, dims, 25, 8) == 24
    assert width.count_near(source, dims, 46, 1) == 42  # never all of them
    with pytest.raises(UsageError, match="LlamaForCausalLM takes no hidden width near 38 that is a multiple of 32"):
        width.count_near(source, dims, 38, 32, strict=True)


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "GPTNeoX"])
def test_classes_that_make_heads_of_their_width_are_refused(kind):
    config = getattr(transformers, f"{kind}Config")(vocab_size=62, hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    with pytest.raises(UsageError, match="its hidden width can't be cut alone"):
        config_sizes.followers_of_width(model, config)


@pytest.mark.parametrize("kind", ["Qwen3", "Mistral", "Phi3"])
def test_other_classes_lose_channels_too(tmp_path, words, kind):
    more = {"head_dim": 8} if kind != "Phi3" else {}
    path = llama(tmp_path / "m", kind=kind, **more)
    plan = SweepPlan([("hidden", 0.25)], "obs", "obs")
    try:
        facts = road.prune_folder(path, data(words), plan, tmp_path / "out")
    except UsageError as error:
        assert "hidden width" in str(error)
        assert kind == "Phi3"
        return
    assert whole(tmp_path / "out").config.hidden_size == 24
    assert facts["generates"]
