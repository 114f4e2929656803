"""A language model as a PyTorch program with a static cache."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from hwprune.cli import main
from hwprune.errors import RunError, UsageError
from hwprune.runtimes import RuntimeSettings, get
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.static_cache import StaticWriter, check_static, static_file, write_static
from tests.streaming.helpers import llama, text, whole

SIZES = {
    "vocab_size": 62, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
CLASSES = {
    "Llama": {},
    "Gemma2": {"head_dim": 8, "sliding_window": 4},  # blocks that look back differently far, scores that are bent
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # positions are learned
    "Bloom": {"n_layer": 2, "n_head": 4},  # no positions at all
    "Mixtral": {"num_local_experts": 4},
}  # fmt: skip


def made(kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **CLASSES[kind]})
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", CLASSES)
def test_it_generates_what_transformers_does(kind, tmp_path):
    model = made(kind)
    write_static(model, tmp_path / "model.pt2", 1, 20)
    program = torch.export.load(tmp_path / "model.pt2").module(check_guards=False)
    ids = torch.tensor([[5, 9, 2, 7, 11, 3]])
    wanted = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 6:].tolist()
    with torch.no_grad():
        for _ in range(2):  # the next text finds nothing of this one
            logits, found = program(ids, torch.arange(6)), []
            for place in range(6, 14):
                found.append(int(logits[0, -1].argmax()))
                logits = program(torch.tensor([found[-1:]]), torch.tensor([place]))
            assert found == wanted


def test_a_program_that_computes_something_else_is_not_handed_over(tmp_path, monkeypatch):
    model, other = made("Llama"), made("Llama")
    other.model.layers[1].mlp.down_proj.weight.data *= 1.05
    ids = torch.arange(12)[None]
    path, shape = static_file(model, tmp_path / "model.pt2", ids, 16)
    assert [x.tolist() for x in shape.inputs(1, 2, 5)] == [[[1, 1]], [5, 6]]
    with pytest.raises(RunError, match="computes something else"):
        check_static(path, other, ids)
    monkeypatch.setattr("hwprune.streaming.static_cache.write_static", lambda _model, *how: write_static(other, *how))
    with pytest.raises(RunError, match="computes something else"):
        static_file(model, tmp_path / "model.pt2", ids, 16)
    assert not path.exists()


def test_a_model_without_keys_and_values_is_refused(tmp_path):
    config = transformers.MambaConfig(vocab_size=62, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(UsageError, match="something else than keys and values"):
        write_static(transformers.MambaForCausalLM(config).eval(), tmp_path / "model.pt2", 1, 20)


def test_blocks_of_any_sizes_are_written(tmp_path):
    """Attention of the first block is gone, where masks would be read from; neurons differ."""
    folder = LanguageFolder(llama(tmp_path / "m"))
    blocks = [{name: x.detach() for name, x in folder.block(index).named_parameters()} for index in range(3)]
    blocks[0] = {name: x for name, x in blocks[0].items() if not name.startswith("self_attn.")}
    for name, x in list(blocks[1].items()):
        if name.startswith("mlp."):
            blocks[1][name] = x[:, :32] if "down" in name else x[:32]
    writer = StaticWriter(folder, {"self_attn": 2, "mlp": 0}, 1, 20)
    path, ids = tmp_path / "model.pt2", torch.arange(12)[None]
    shape = writer.write(blocks, path)
    assert shape.heads == (2, 2, 2, 2)
    model = whole(folder.path)
    model.model.layers[0].self_attn.o_proj.weight.data.zero_()
    for name, x in blocks[1].items():
        model.model.layers[1].get_submodule(name.rpartition(".")[0]).weight.data = x
    check_static(path, model, ids)


def test_apply_writes_and_measures_it(tmp_path, capsys):
    folder, words = llama(tmp_path / "m"), text(tmp_path / "words.txt")
    given = [
        "apply", "neuron=0.5", f"hf:{folder}", "--text", str(words), "--length", "16", "--windows", "6", "--multiple", "16",
        "--format", "huggingface,pt2", "--measure", "--tokens", "8+4", "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    assert main.main(given) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["program"] == "pytorch/model.pt2" and "PyTorch" in facts["target"]
    assert facts["phases"]["decode"]["value"] > 0 and facts["phases"]["prefill_speedup"]["value"] > 0
    check_static(tmp_path / "out" / facts["program"], whole(tmp_path / "out"), torch.arange(12)[None])
    assert not (tmp_path / "out" / "onnx").exists() and facts["positions"] == 12


def test_room_is_asked_for_and_told_without_measuring(tmp_path, capsys):
    folder, words = llama(tmp_path / "m"), text(tmp_path / "words.txt")
    given = [
        "apply",
        "neuron=0.5",
        f"hf:{folder}",
        "--text",
        str(words),
        "--length",
        "16",
        "--windows",
        "6",
        "--format",
        "huggingface,pt2",
    ]
    assert main.main([*given, "--tokens", "40+30", "--out", str(tmp_path / "too-long")]) == 2
    assert "is more than the 64 positions of this model" in capsys.readouterr().err
    assert main.main([*given, "--tokens", "1+1", "--out", str(tmp_path / "out")]) == 0
    assert "pytorch/model.pt2, with room for 2 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "huggingface,onnx", "--target", "cpu-pytorch"], "cpu-pytorch is for other files: --format huggingface,pt2"),
        (["--format", "huggingface,pt2", "--target", "cpu"], "cpu is for other files: --format huggingface,onnx"),
        (["--format", "huggingface,pt2,onnx"], "one of onnx and pt2"),
        (["--format", "pt2"], "goes with huggingface"),
        (["--format", "huggingface,pt2", "--quantize", "int8"], "writes ONNX files"),
    ],
)
def test_files_that_the_target_does_not_run_are_refused(tmp_path, capsys, more, message):
    folder, words = llama(tmp_path / "m"), text(tmp_path / "words.txt")
    assert main.main(["apply", "neuron=0.5", f"hf:{folder}", "--text", str(words), "--out", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err


def test_two_tokens_are_enough_to_check_it_and_texts_side_by_side(tmp_path):
    model = made("Llama")
    path, shape = static_file(model, tmp_path / "model.pt2", torch.tensor([[3, 5]]), 2, batch=3)
    assert [x.shape for x in shape.inputs(3, 1, 1)] == [(3, 1), (1,)]
    with pytest.raises(RunError, match="does not run"):  # it is for three texts
        check_static(path, model, torch.tensor([[3, 5]]))


def test_it_runs_in_16_bits(tmp_path):
    path, shape = static_file(made("Llama"), tmp_path / "model.pt2", torch.arange(12)[None], 16, precision="bf16")
    runner = get("pytorch-cpu").load(path, RuntimeSettings(precision="bf16"))
    runner.bind(shape.inputs(1, 1, 12))()


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def full(_program, file):
        file.write_bytes(b"half")
        raise RuntimeError("unexpected pos 65792 vs 65680")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(RunError, match=r"model.pt2 can't be written: .*unexpected pos"):
        write_static(made("Llama"), tmp_path / "model.pt2", 1, 16)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "compile", "cuda-graph"])
def test_a_gpu_generates_with_it(mode, tmp_path):
    model, ids = made("Llama"), torch.arange(12)[None]
    path, shape = static_file(model, tmp_path / "model.pt2", ids, 16)
    runner = get("pytorch-cuda").load(path, RuntimeSettings(options={"mode": mode}))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.numpy()
    (found,) = runner.run([ids.numpy(), torch.arange(12).numpy()])
    assert abs(found - wanted).max() < 1e-3 * abs(wanted).max()
    for count, past in ((12, 0), (1, 12)):
        runner.bind(shape.inputs(1, count, past))()
