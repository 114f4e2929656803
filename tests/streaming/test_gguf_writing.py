"""A pruned model as a GGUF file: what is read back is what was pruned, and wrong files are found out."""

from __future__ import annotations

import json
import math

import pytest
import torch

from hwprune.errors import RunError, UsageError
from hwprune.streaming import gguf_writing, road
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload import gguf_file
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import WORDS, gguf_llama, text, whole

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return gguf_llama(tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize(
    ("patterns", "types"),
    [
        ([("neuron", 0.25), ("head", 0.5)], {"Q8_0": 22, "F32": 7}),
        ([("neuron", 0.3)], {"Q8_0": 19, "F32": 7, "F16": 3}),  # 90 columns are no whole blocks of 32
        ([("layer", 0.34)], {"Q8_0": 15, "F32": 5}),
        ([("hidden", 0.5)], {"Q8_0": 22, "F32": 7}),
    ],
    ids=str,
)
def test_the_file_is_what_was_pruned(tmp_path, file, patterns, types):
    words = text(tmp_path / "words.txt")
    dense = LanguageFolder(gguf_file.unpacked(file.parent, file.name, tmp_path / "dense"))
    plan = SweepPlan(patterns, "l2", "none")
    data = TextData(words, None, length=16, most=8, judged=4)
    facts = road.prune_folder(file.parent, data, plan, tmp_path / "out", gguf=file.name, gguf_out=True, score=True)
    assert facts["gguf_types"] == types
    back = gguf_file.unpacked(tmp_path / "out", "model.gguf", tmp_path / "back")
    found, wanted = whole(back).state_dict(), whole(tmp_path / "out").state_dict()
    for name in wanted:  # cut rows lie in other blocks, with other scales
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0.02)
    assert math.log(facts["gguf_perplexity"]) == pytest.approx(math.log(facts["perplexity"]), abs=0.05)
    assert facts["gguf_bytes"] < facts["dense_gguf_bytes"]
    reader = gguf.GGUFReader(str(tmp_path / "out" / "model.gguf"))
    assert reader.fields["general.name"].contents() == "a small one"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == len(WORDS) + 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for key, name in (
        ("block_count", "num_hidden_layers"), ("feed_forward_length", "intermediate_size"), ("embedding_length", "hidden_size"),
        ("attention.head_count", "num_attention_heads"), ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
    ):  # fmt: skip
        assert reader.fields[f"llama.{key}"].contents() == config[name], key
    assert dense.depth == 3


def test_queries_in_another_order_are_found_out(tmp_path, file, monkeypatch):
    folder = LanguageFolder(gguf_file.unpacked(file.parent, file.name, tmp_path / "dense"))
    monkeypatch.setattr(gguf_writing, "PERMUTED", ())
    gguf_writing.write_gguf(file, folder, [0, 1, 2], tmp_path / "model.gguf")
    back = LanguageFolder(gguf_file.unpacked(tmp_path, "model.gguf", tmp_path / "back"))
    with pytest.raises(RunError, match="_proj.weight of the GGUF file holds other numbers"):
        gguf_writing.check_gguf(folder, back)


def test_an_architecture_without_names_is_refused(tmp_path, file, monkeypatch):
    folder = LanguageFolder(gguf_file.unpacked(file.parent, file.name, tmp_path / "dense"))
    monkeypatch.setattr(gguf, "MODEL_ARCH_NAMES", {})
    with pytest.raises(UsageError, match="architecture llama can't be written"):
        gguf_writing.write_gguf(file, folder, [0, 1, 2], tmp_path / "model.gguf")
