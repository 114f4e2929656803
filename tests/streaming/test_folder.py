"""Folders of language models, read without being loaded."""

from __future__ import annotations

import pytest
import torch

from hwprune.errors import UsageError, WorkloadError
from hwprune.streaming.folder import LanguageFolder
from tests.streaming.helpers import llama, whole


def test_what_is_in_it_is_known_without_loading_it(folder):
    found = LanguageFolder(folder)
    assert (found.blocks, found.depth, found.dtype) == ("model.layers", 3, torch.float32)
    assert all(x.is_meta for x in found.skeleton.parameters())
    assert not any(x.is_meta for x in found.skeleton.buffers())
    assert sorted([*found.other_tensors(), *(n for i in range(3) for n in found.block_tensors(i))]) == sorted(found.files)


def test_a_block_has_the_weights_of_the_whole_model(folder):
    model = whole(folder)
    block = LanguageFolder(folder).block(1)
    for name, tensor in model.model.layers[1].state_dict().items():
        assert torch.equal(block.state_dict()[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
def test_the_ends_give_embeddings_and_words(tmp_path, tied):
    path = llama(tmp_path / "m", tied=tied)
    ends, model = LanguageFolder(path).ends(), whole(path)
    assert torch.equal(ends.lm_head.weight, model.lm_head.weight)
    assert torch.equal(ends.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_a_model_in_several_files_is_read(tmp_path):
    path = llama(tmp_path / "m")
    model = whole(path)
    for file in path.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(str(path), max_shard_size="20KB")
    found = LanguageFolder(path)
    assert len(set(found.files.values())) > 1
    assert torch.equal(found.block(2).self_attn.q_proj.weight, model.model.layers[2].self_attn.q_proj.weight)


def test_wrong_folders_are_told(tmp_path, folder):
    with pytest.raises(UsageError, match=r"no config\.json"):
        LanguageFolder(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WorkloadError, match=r"neither model\.safetensors"):
        LanguageFolder(tmp_path)
    import transformers

    bert = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    transformers.BertModel(bert).save_pretrained(str(tmp_path / "bert"))
    with pytest.raises(WorkloadError, match="no causal language model"):
        LanguageFolder(tmp_path / "bert")
