"""Blocks of different sizes: every file that is written computes the same, as its user loads it, and says the sizes truly."""

from __future__ import annotations

import json
import subprocess
import sys

import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file

from hwprune.errors import UsageError
from hwprune.streaming import road
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData, tokenizer_of, windows
from tests.streaming.helpers import gguf_llama, llama, losses, text, whole

BLOCKS = ({"neuron": 0.5}, {"attention": 1.0}, {"layer": 1.0}, {"mlp": 1.0, "head": 0.5}, {})


def data(words):
    return TextData(words, length=16, most=8, judged=4)


def run(tmp_path, folder, words, blocks, **more):
    facts = road.prune_folder(
        folder, data(words), SweepPlan((), "obs", "obs", by_block=blocks), tmp_path / "out", score=True, **more
    )
    return tmp_path / "out", facts


def user_loads(out):
    return transformers.AutoModelForCausalLM.from_pretrained(str(out), trust_remote_code=True, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("deep"), depth=5)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Mistral"])
def test_what_its_user_loads_has_each_blocks_sizes_and_the_told_perplexity(tmp_path, words, kind):
    folder = llama(tmp_path / "dense", depth=5, kind=kind, **({"head_dim": 8} if kind == "Qwen3" else {}))
    out, facts = run(tmp_path, folder, words, BLOCKS)
    model = user_loads(out)
    layers = list(model.model.layers)
    assert facts["uneven"] and len(layers) == 4
    assert [getattr(layer.mlp, "gate_proj", None) is None for layer in layers] == [False, False, True, False]
    assert layers[0].mlp.gate_proj.weight.shape == (24, 32) and layers[3].mlp.gate_proj.weight.shape == (48, 32)
    assert layers[0].mlp.gate_proj.out_features == 24
    assert not any(p.ndim == 2 for p in layers[1].self_attn.parameters())
    # Half of two groups, and half of the two queries of each.
    assert layers[2].self_attn.k_proj.weight.shape == (8, 32) and layers[2].self_attn.q_proj.weight.shape == (8, 32)
    _, judged = data(words).read(folder)
    assert facts["perplexity"] == pytest.approx(float(losses(model, judged).mean().exp()), rel=1e-5)
    assert facts["params"] == sum(p.numel() for p in model.parameters())
    stored = load_file(next(out.glob("*.safetensors")))
    assert not any(bool((x == 0).all()) for x in stored.values())  # nothing that stands for what is gone
    made = model.generate(judged[:1, :5], max_new_tokens=6, do_sample=False)
    for place in range(5, made.shape[1]):
        assert int(model(made[:, :place], use_cache=False).logits[0, -1].argmax()) == int(made[0, place])


def test_it_loads_without_hwprune(tmp_path, deep, words):
    out, _ = run(tmp_path, deep, words, BLOCKS)
    code = (
        "import sys, torch; sys.modules['hwprune'] = None; import transformers\n"
        f"m = transformers.AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        f"m.save_pretrained({str(tmp_path / 'again')!r})\n"
        f"n = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'again')!r}, trust_remote_code=True)\n"
        "ids = torch.arange(7)[None]\n"
        "assert torch.equal(m(ids).logits, n(ids).logits)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"HF_HOME": str(tmp_path), "PATH": ""})


def test_a_llama_that_keeps_its_queries_is_laid_out_as_vllm_reads_it(tmp_path, deep, words):
    """As vllm/model_executor/models/nemotron_nas.py reads config and tensors."""
    out, facts = run(tmp_path, deep, words, ({"neuron": 0.5}, {"attention": 1}, {"layer": 1}, {"mlp": 1}, {}))
    assert facts["vllm"]
    config = transformers.AutoConfig.from_pretrained(str(out), trust_remote_code=True)
    assert config.architectures == ["DeciLMForCausalLM"] and config.num_hidden_layers == len(config.block_configs) == 4
    wanted = {"model.embed_tokens.weight", "model.norm.weight"}
    for place, block in enumerate(config.block_configs):
        start = f"model.layers.{place}"
        if not block.attention.no_op:
            assert config.num_attention_heads // block.attention.n_heads_in_group == 2
            wanted |= {f"{start}.self_attn.{name}_proj.weight" for name in "qkvo"} | {f"{start}.input_layernorm.weight"}
        if not block.ffn.no_op:
            assert not hasattr(block.ffn, "ffn_mult") and not hasattr(block.ffn, "hidden_act")
            assert block.ffn.intermediate_size == (24 if place == 0 else 48)
            wanted |= {f"{start}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
            wanted |= {f"{start}.post_attention_layernorm.weight"}
    stored = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert set(stored) == wanted
    assert stored["model.layers.0.mlp.gate_proj.weight"].shape == (24, 32)


def test_fewer_queries_are_no_layout_of_vllm(tmp_path, deep, words):
    out, facts = run(tmp_path, deep, words, ({"head": 0.5}, {}, {}, {}, {}))
    config = json.loads((out / "config.json").read_text())
    assert not facts["vllm"] and config["model_type"] == "llama" and "block_configs" not in config


def test_blocks_that_come_out_alike_need_no_code(tmp_path, folder, words):
    out, facts = run(tmp_path, folder, words, ({"neuron": 0.5},) * 3)
    assert not facts["uneven"] and whole(out).config.intermediate_size == 24
    assert not list(out.glob("*.py"))


def test_alike_but_for_attention_that_is_gone_need_no_code(tmp_path, folder, words):
    out, facts = run(tmp_path, folder, words, ({"neuron": 0.5}, {"neuron": 0.5, "attention": 1}, {"neuron": 0.5}))
    assert not facts["uneven"] and not bool(whole(out).model.layers[1].self_attn.q_proj.weight.any())


def test_other_sizes_beside_attention_that_is_gone_do(tmp_path, folder, words):
    out, facts = run(tmp_path, folder, words, ({}, {"neuron": 0.5, "attention": 1}, {}))
    assert facts["uneven"] and user_loads(out).model.layers[1].mlp.gate_proj.weight.shape == (24, 32)


@pytest.mark.slow
def test_the_onnx_file_has_the_sizes_too(tmp_path, deep, words):
    out, _ = run(tmp_path, deep, words, BLOCKS, onnx=True)
    session = onnxruntime.InferenceSession(str(out / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    past = {node.name: node.shape[1] for node in session.get_inputs() if "past" in node.name}
    assert past == {f"past_key_values.{i}.{kind}": heads for i, heads in enumerate([2, 1, 2]) for kind in ("key", "value")}
    ids = windows(deep, words, 16)[:1]
    feed = {node.name: torch.zeros(1, node.shape[1], 0, 8).numpy() for node in session.get_inputs() if "past" in node.name}
    found = session.run(["logits"], {"input_ids": ids.numpy()} | feed)[0]
    wanted = user_loads(out)(ids).logits.detach()
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-4)


def test_it_is_pruned_further(tmp_path, deep, words, monkeypatch):
    """An uneven folder is a model like others: what lies beside it as code is not run."""
    out, _ = run(tmp_path, deep, words, ({"attention": 1}, {"neuron": 0.5}, {}, {}, {}))
    (out / "modeling_uneven.py").write_text("raise SystemExit('run')")
    (out / "configuration_uneven.py").write_text("raise SystemExit('run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert len(tokenizer_of(out)("a b")["input_ids"]) == 2
    facts = road.prune_folder(out, data(words), SweepPlan([("layer", 0.4)], "obs", "none"), tmp_path / "again", score=True)
    assert len(facts["kept"]) == 3 and facts["perplexity"] > facts["dense_perplexity"]
    _, judged = data(words).read(out)
    assert facts["perplexity"] == pytest.approx(float(losses(user_loads(tmp_path / "again"), judged).mean().exp()), rel=1e-5)
    road.prune_folder(
        out, data(words), SweepPlan((), "obs", "none", by_block=({"layer": 1}, {"layer": 1}, {}, {}, {})), tmp_path / "e"
    )
    assert not list((tmp_path / "e").glob("*.py")) and whole(tmp_path / "e").config.num_hidden_layers == 3


def test_a_gguf_file_has_the_sizes_too(tmp_path):
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    file = gguf_llama(tmp_path / "dense")
    words = text(tmp_path / "words.txt")
    plan = SweepPlan((), "l2", "none", by_block=({"neuron": 0.5}, {"attention": 1, "neuron": 0.25}, {"head": 0.5}))
    facts = road.prune_folder(file.parent, data(words), plan, tmp_path / "out", gguf=file.name, gguf_out=True, score=True)
    reader = gguf.GGUFReader(str(tmp_path / "out" / "model.gguf"))
    read = {name: reader.fields[f"deci.{name}"].contents() for name in ("feed_forward_length", "attention.head_count")}
    assert read == {"feed_forward_length": [64, 96, 128], "attention.head_count": [4, 0, 1]}
    assert reader.fields["deci.attention.head_count_kv"].contents() == [2, 0, 1]
    assert facts["gguf_perplexity"] == pytest.approx(facts["perplexity"], rel=0.05)
    if "llama_missing" not in facts:
        assert facts["llama_divergence"] < 0.1


def test_a_plan_for_other_blocks_is_refused(tmp_path, folder, words):
    with pytest.raises(UsageError, match=r"the plan has 2 blocks, the model 3"):
        run(tmp_path, folder, words, ({}, {"neuron": 0.5}))
    assert not LanguageFolder(folder).uneven
