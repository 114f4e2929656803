"""GGUF files in llama.cpp itself: what was written is what it computes, and wrong files are found out."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.errors import RunError, UsageError
from hwprune.records.measurement import Measurement
from hwprune.streaming import gguf_writing, llama_files, phases, road
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.phases import Phases, Tokens
from hwprune.streaming.sweep import Sweep
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload import gguf_file
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import gguf_llama, text

gguf = pytest.importorskip("gguf")
for package in ("xllamacpp", "accelerate", "transformers"):
    pytest.importorskip(package)

IDS = torch.arange(2, 26)[None] % 12 + 2


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return gguf_llama(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def dense(file, tmp_path_factory):
    return LanguageFolder(gguf_file.unpacked(file.parent, file.name, tmp_path_factory.mktemp("unpacked") / "dense"))


def test_llama_cpp_computes_what_transformers_does(file, dense):
    assert 0 <= llama_files.check_llama(file, dense, IDS) < 0.05


def test_queries_in_another_order_are_found_out(tmp_path, file, dense, monkeypatch):
    """Transformers turns queries back as our writer turns them; llama.cpp is asked what is really in the file."""
    monkeypatch.setattr(gguf_writing, "PERMUTED", ())
    gguf_writing.write_gguf(file, dense, [0, 1, 2], tmp_path / "model.gguf")
    with pytest.raises(RunError, match="llama.cpp computes something else"):
        llama_files.check_llama(tmp_path / "model.gguf", dense, IDS)


def test_a_file_that_is_none_is_told(tmp_path, dense):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and nothing else")
    with pytest.raises(RunError, match="llama.cpp can't run"):
        llama_files.check_llama(path, dense, IDS)


def run(file, out, plan=None, **more):
    plan = plan or SweepPlan([("neuron", 0.25), ("head", 0.5)], "l2", "none")
    data = TextData(text(out.parent / "words.txt"), None, length=16, most=8, judged=4)
    return road.prune_folder(file.parent, data, plan, out, gguf=file.name, gguf_out=True, **more)


@pytest.mark.parametrize(
    "patterns",
    [[("attention", 0.34)], [("attention", 0.34), ("neuron", 0.25), ("head", 0.5)], [("layer", 0.34), ("attention", 0.34)]],
    ids=str,
)
def test_blocks_without_attention_run_in_llama_cpp(tmp_path, file, patterns):
    """The file has sizes for each block, and llama.cpp computes from it what the folder, with zeros, computes in transformers."""
    facts = run(file, tmp_path / "out", plan=SweepPlan(patterns, "l2", "none"), score=True)
    (index,) = facts["silent"]["attention"]
    place, depth = facts["kept"].index(index), len(facts["kept"])
    reader = gguf.GGUFReader(str(tmp_path / "out" / "model.gguf"))
    config = LanguageFolder(tmp_path / "out").config
    assert reader.fields["general.architecture"].contents() == "deci"
    for key, size in (
        ("attention.head_count", config.num_attention_heads), ("attention.head_count_kv", config.num_key_value_heads),
        ("feed_forward_length", config.intermediate_size),
    ):  # fmt: skip
        values = reader.fields[f"deci.{key}"].contents()
        assert values == [0 if key != "feed_forward_length" and at == place else size for at in range(depth)]
    assert not [tensor.name for tensor in reader.tensors if tensor.name.startswith(f"blk.{place}.attn")]
    assert not any(name.startswith("llama.") for name in reader.fields)
    assert 0 <= facts["llama_divergence"] < 0.05
    assert math.log(facts["gguf_perplexity"]) == pytest.approx(math.log(facts["perplexity"]), abs=0.05)


def test_the_wrong_block_without_attention_is_found_out(tmp_path, file, dense):
    facts = run(file, tmp_path / "out", plan=SweepPlan([("attention", 0.34)], "l2", "none"))
    (index,) = facts["silent"]["attention"]
    written = LanguageFolder(tmp_path / "out")
    wrong = {1: 2, 2: 1}[index]
    gguf_writing.write_gguf(file, written, [0, 1, 2], tmp_path / "wrong.gguf", [wrong])
    back = gguf_writing.read_back(tmp_path / "wrong.gguf", written, tmp_path / "back", [wrong])
    with pytest.raises(RunError, match="llama.cpp computes something else"):
        llama_files.check_llama(tmp_path / "wrong.gguf", back, IDS)
    with pytest.raises(RunError, match=f"lacks model.layers.{wrong}"):
        gguf_writing.read_back(tmp_path / "wrong.gguf", written, tmp_path / "again", [index])


def test_what_no_gguf_file_holds_is_refused_before_anything(tmp_path, file, monkeypatch):
    with pytest.raises(UsageError, match="without an MLP"):
        run(file, tmp_path / "out", plan=SweepPlan([("mlp", 0.34)], "l2", "none"))
    monkeypatch.setattr(gguf_writing, "BY_BLOCK", {})
    with pytest.raises(UsageError, match="architecture llama holds no blocks without attention"):
        run(file, tmp_path / "out", plan=SweepPlan([("attention", 0.34)], "l2", "none"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(Sweep, "_kept", lambda *_: ([0, 1, 2], {"attention": [0]}))
    with pytest.raises(UsageError, match="first block without attention"):
        run(file, tmp_path / "out", plan=SweepPlan([("attention", 0.34)], "l2", "none"))
    assert not any((tmp_path / "out").glob("*"))


def test_both_files_are_timed_in_llama_cpp_and_no_onnx_file_is_made(tmp_path, file, monkeypatch):
    seen = []

    def measure(before, after, target, tokens, step):
        seen.append((before[0], after[0], target.runtime, [[x.tolist() for x in one[1](1, 1, 3)] for one in (before, after)]))
        one = Measurement(1.0, "x", 0.9, 1.1, 6)
        return Phases(tokens, one, one, one, one, one, one)

    monkeypatch.setattr(phases, "measure", measure)
    facts = run(file, tmp_path / "out", tokens=Tokens(8, 4))
    assert seen == [(file, tmp_path / "out" / "model.gguf", "llama.cpp", [[[[1, 1, 1, 1]], [3]]] * 2)]
    assert facts["llama_divergence"] < 0.1 and facts["llama_phases"]["prompt"] == 8 and "phases" not in facts
    assert not (tmp_path / "out" / "onnx").exists()


def test_a_file_that_llama_cpp_can_not_run_does_not_stay(tmp_path, file, monkeypatch):
    monkeypatch.setattr(llama_files, "LOOSEST", -1.0)
    with pytest.raises(RunError, match="computes something else"):
        run(file, tmp_path / "out")
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_without_llama_cpp_it_is_said_that_nothing_ran_there(tmp_path, file, monkeypatch):
    monkeypatch.setattr(llama_files, "missing", lambda: "xllamacpp is not installed")
    facts = run(file, tmp_path / "out")
    assert facts["llama_missing"] == "xllamacpp is not installed" and "llama_divergence" not in facts
    assert (tmp_path / "out" / "model.gguf").exists()
