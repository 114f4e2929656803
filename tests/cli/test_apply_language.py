"""hwprune apply ... --format huggingface, from the command line."""

from __future__ import annotations

import json

import onnxruntime
import pytest

from hwprune.cli import apply_language, main
from hwprune.streaming import sweep_plan
from hwprune.streaming.sweep import Sweep
from tests.streaming.helpers import gguf_llama, llama, text, whole


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("language model")  # with a space
    llama(place / "model", depth=2)
    text(place / "a.txt", words=600)
    return place


def test_one_command_is_the_whole_road(place, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "w1 w2", "choices": [" w3", " w4"], "answer": 0}))
    words = [
        "apply", "neuron=0.25", f"hf:{place / 'model'}", "--text", str(place / "a.txt"), "--length", "16", "--windows", "8",
        "--format", "huggingface", "--score", "--choices", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main.main([*words, "--json", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["params"] == sum(p.numel() for p in whole(tmp_path / "out").parameters())
    assert facts["perplexity"] != facts["dense_perplexity"] and facts["questions"] == 1
    assert main.main(words) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    words[-1] = str(tmp_path / "again")
    (tmp_path / "again" / "unfinished").mkdir(parents=True)  # killed while it wrote: what is there is written again
    (tmp_path / "again" / "config.json").write_text("{")
    assert main.main(words) == 0
    told = capsys.readouterr().out
    assert "loads in transformers and generates" in told and "Right answers to 1 question" in told and "Perplexity on" in told


def test_an_onnx_file_with_a_cache_and_both_phases(place, tmp_path, capsys):
    words = [
        "apply", "head=0.5", f"hf:{place / 'model'}", "--text", str(place / "a.txt"), "--length", "16", "--windows", "8",
        "--format", "huggingface,onnx", "--measure", "--tokens", "8+4", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main.main(words) == 0
    told = capsys.readouterr().out
    assert "Cache: 256 B -> 128 B a token in 32 bits." in told
    assert all(word in told for word in ("Prompt of 8 tokens: ", "Next token after 10: ", "Whole answer (8 tokens in, 4 out): "))
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [node.shape[1] for node in session.get_inputs()][1:] == [1] * 4
    assert not (tmp_path / "out" / "unfinished").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["neuron=0.25", "demo:digits"], "is for hf:FOLDER of a causal language model"),
        (["neuron=0.25", "hf:{model}"], "is for hf:FOLDER of a causal language model"),
        (["neuron=0.25", "hf:{model}", "--text", "{text}", "--measure", "--tokens", "12"], "--tokens takes PROMPT+NEW"),
        (["recipe.json", "hf:{model}", "--text", "{text}"], "recipe.json can't be read"),
        (["neuron=0.25", "hf:{model}", "--text", "{text}", "--scope", "global"], "--scope is not for --format huggingface"),
        (["layer=1.5", "hf:{model}", "--text", "{text}"], "must be between 0 and 1"),
        (["neurons=0.25", "hf:{model}", "--text", "{text}"], "neuron"),
        (["neuron=0.25", "hf:{model}", "--text", "{text}", "--memory", "10kB"], "one block of LlamaForCausalLM needs about"),
        (
            ["hidden=1", "hf:{model}", "--text", "{text}", "--length", "16"],
            "the fraction of the channels that go must be between",
        ),
    ],
)
def test_what_can_not_be_done_is_one_message(place, tmp_path, capsys, words, message):
    words = [word.format(model=place / "model", text=place / "a.txt") for word in words]
    assert main.main(["apply", *words, "--format", "huggingface", "--out", str(tmp_path / "out"), "-q"]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not any((tmp_path / "out").glob("*"))  # what begins anew there is not kept from it


def test_formats_that_there_are(place, tmp_path, capsys):
    words = [
        "apply",
        "neuron=0.25",
        f"hf:{place / 'model'}",
        "--text",
        str(place / "a.txt"),
        "--out",
        str(tmp_path / "out"),
        "-q",
    ]
    for format_, message in (
        ("huggingface,tflite", "--format takes onnx, huggingface, or huggingface,onnx,gguf,pt2, got 'tflite'"),
        ("gguf", "--format gguf goes with huggingface"),
        ("huggingface,gguf", "--format gguf writes a file like the one that --gguf reads"),
    ):
        assert main.main([*words, "--format", format_]) == 2
        assert message in capsys.readouterr().err
    assert main.main([*words, "--format", "onnx", "--measure"]) == 2
    assert "--measure: for --format huggingface" in capsys.readouterr().err
    assert main.main([*words, "--format", "huggingface", "--quantize", "int8"]) == 2
    assert "--quantize writes ONNX files" in capsys.readouterr().err
    assert main.main([*words, "--format", "huggingface", "--recover", "finetune:2"]) == 2
    assert "takes distill:TOKENS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("neuron=nan", "'neuron=nan' is no PATTERN=SPARSITY"),
        ("querys=0.5", "Did you mean 'query'?"),
        ("kv=1.5", "kv=1.5: the fraction that goes must be between 0 and 1"),
        ("query=-0.2", "query=-0.2: the fraction that goes"),
        ("neuron", "pattern neuron needs a sparsity: neuron=0.25"),
        ("kv=0.5,head=0.5", "head takes key-value groups and queries: give it without kv and query"),
        ("layer=1", "layer=1: the fraction of the blocks that lose it must be between 0 and 1"),
    ],
)
def test_a_wrong_recipe_is_told_in_its_users_words(place, tmp_path, capsys, recipe, message):
    words = ["apply", recipe, f"hf:{place / 'model'}", "--text", str(place / "a.txt"), "--format", "huggingface"]
    assert main.main([*words, "--out", str(tmp_path / "out"), "-q"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_gguf_file_gets_smaller_whatever_was_asked(tmp_path, capsys):
    """Rows of 90 numbers would be kept in 16 bits; 96 are three blocks of 8-bit numbers."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    (tmp_path / "dense").mkdir()
    file = gguf_llama(tmp_path / "dense")
    text(tmp_path / "a.txt", words=600)
    words = [
        "apply", "neuron=0.3,attention=0.34", f"hf:{file.parent}", "--gguf", file.name, "--text", str(tmp_path / "a.txt"),
        "--length", "16", "--windows", "8", "--compensation", "none", "--format", "huggingface,gguf",
    ]  # fmt: skip
    assert main.main([*words, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "no attention in 1 of 3 blocks" in told and "the folder holds zeros there" in told
    assert "Numbers of neurons are multiples of 32 (--multiple 1: as asked)." in told
    reader = gguf.GGUFReader(str(tmp_path / "out" / "model.gguf"))
    assert reader.fields["deci.feed_forward_length"].contents() == [96] * 3
    assert {one.tensor_type.name for one in reader.tensors} == {"Q8_0", "F32"}
    assert main.main([*words, "--multiple", "1", "--out", str(tmp_path / "asked")]) == 0
    asked = gguf.GGUFReader(str(tmp_path / "asked" / "model.gguf"))
    assert asked.fields["deci.feed_forward_length"].contents() == [90] * 3
    assert (tmp_path / "asked" / "model.gguf").stat().st_size > (tmp_path / "out" / "model.gguf").stat().st_size
    assert "multiples of" not in capsys.readouterr().out


def test_the_command_line_knows_the_patterns_of_the_sweep():
    assert (*sweep_plan.WHOLE, sweep_plan.KV, sweep_plan.QUERY) == apply_language.PATTERNS


def test_ctrl_c_tells_how_to_go_on(place, tmp_path, capsys, monkeypatch):
    real, calls = Sweep._block, []

    def stopped(self, *rest):
        calls.append(rest)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *rest)

    monkeypatch.setattr(Sweep, "_block", stopped)
    words = [
        "apply", "mlp=0.5", f"hf:{place / 'model'}", "--text", str(place / "a.txt"), "--length", "16", "--windows", "8",
        "--format", "huggingface", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main.main(words) == 130
    assert "The same command goes on at the block where it was." in capsys.readouterr().err
    assert main.main(words) == 0 and len(calls) == 3  # the first block is not done again
    assert "no MLP in 1 of 2 blocks" in capsys.readouterr().out
