"""Words that follow."""

from __future__ import annotations

import torch

from hwprune.streaming.continuation import continuation
from hwprune.streaming.folder import LanguageFolder
from hwprune.workload.text_windows import windows
from tests.streaming.helpers import WORDS, whole


def test_each_word_is_the_likeliest_after_those_before(folder, words):
    ids = windows(folder, words, 16)[:1]
    said = continuation(LanguageFolder(folder), ids, 5).split()
    model, names, seen = whole(folder), ["[UNK]", "[PAD]", *WORDS], ids
    for word in said:
        likeliest = int(model(seen, use_cache=False).logits[0, -1].argmax())
        assert names[likeliest] == word
        seen = torch.cat([seen, torch.tensor([[likeliest]])], 1)
    assert len(said) == 5
