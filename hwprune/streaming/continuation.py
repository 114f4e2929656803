"""How a language model goes on after a text, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hwprune.streaming.folder import LanguageFolder
from hwprune.workload.text_windows import tokenizer_of


@torch.no_grad()
def continuation(folder: LanguageFolder, ids: torch.Tensor, new: int) -> str:
    """The likeliest words, one after the other; the whole model is in memory.

    Args:
        ids: (1, tokens).
        new: how many tokens.
    """
    model: Any = folder.whole()
    model.config.use_cache = True
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest:
        new = max(1, min(new, longest - ids.shape[1]))
    made = model.generate(ids, max_new_tokens=new, do_sample=False, repetition_penalty=1.0)
    return in_words(folder.path, made[:, ids.shape[1] :])


def in_words(folder: Path, ids: torch.Tensor) -> str:
    """Tokens (1, tokens) as text."""
    return str(tokenizer_of(folder).decode(ids[0], skip_special_tokens=True))
