"""A language model from Python: what the commands do, by the names that can be imported."""

from __future__ import annotations

import torch
import transformers

import hwprune
from tests.streaming.helpers import llama, text


def test_a_folder_is_pruned_block_by_block_from_python(tmp_path):
    source = llama(tmp_path / "model", depth=2)
    words = text(tmp_path / "words.txt", 1200)
    plan = hwprune.SweepPlan([("neuron", 0.25)], "obs", "obs", multiple=1)
    facts = hwprune.prune_folder(source, hwprune.TextData(words, length=16, most=6), plan, tmp_path / "out", score=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), dtype=torch.float32)
    dense = transformers.AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    assert model.config.intermediate_size == round(0.75 * dense.config.intermediate_size)
    assert facts["params"] == sum(p.numel() for p in model.parameters()) and facts["perplexity"] > 1
