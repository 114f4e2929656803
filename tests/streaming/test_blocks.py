"""One block by itself computes what it computes in the model."""

from __future__ import annotations

import pytest
import torch

from hwprune.errors import WorkloadError
from hwprune.streaming.blocks import block_of, entering, leaving
from hwprune.streaming.folder import LanguageFolder
from tests.streaming.helpers import llama, whole

IDS = torch.tensor([[3, 9, 27, 14, 40, 2, 7, 21]])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma2"])
def test_what_enters_passes_and_leaves(tmp_path, kind):
    path = llama(tmp_path / "m", kind=kind)
    model, folder = whole(path), LanguageFolder(path)
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _layer, inputs, output: seen.append((inputs[0], output)))
    logits = model(IDS, use_cache=False).logits
    ends = folder.ends()
    hidden, given = entering(ends, folder.blocks, IDS)
    for index, (before, after) in enumerate(seen):
        assert torch.allclose(hidden, before, atol=1e-5)
        hidden = block_of(folder, index, given[index])(hidden)
        assert torch.allclose(hidden, after[0] if isinstance(after, tuple) else after, atol=1e-5)
    assert torch.allclose(leaving(ends, folder.blocks, IDS, hidden), logits, atol=1e-4)


def test_blocks_that_are_called_in_another_way_are_told(folder):
    found = LanguageFolder(folder)
    ends = found.ends()
    ends.model.config.num_hidden_layers = 2  # the model stops before its last block
    with pytest.raises(WorkloadError, match="does not call each of its 3 blocks once"):
        entering(ends, found.blocks, IDS)
