"""Perplexity block by block is that of the whole model."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.perplexity import perplexity, window_losses
from hwprune.workload.text_windows import windows
from tests.streaming.helpers import llama, losses, whole


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral", "Gemma", "Qwen3"])
def test_it_is_that_of_the_whole_model(tmp_path, folder, words, kind):
    path = llama(tmp_path / "m", kind=kind)
    ids = windows(folder, words, 16)[:5]
    found = window_losses(LanguageFolder(path), ids)
    assert torch.allclose(found, losses(whole(path), ids), rtol=1e-5)
    assert perplexity(found) == pytest.approx(math.exp(float(found.mean())))
