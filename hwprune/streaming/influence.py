"""How much each block turns what passes it (ShortGPT, Men et al. 2024, arXiv 2403.03853)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from hwprune.common.telling import Tell, silent
from hwprune.streaming.blocks import block_of
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates


@torch.no_grad()
def of_blocks(folder: LanguageFolder, given: list[Any], entered: HiddenStates, work: Path, step: Tell = silent) -> list[float]:
    """1 - cosine of what enters and what leaves it, for each block; a mean over the tokens of all windows.

    Args:
        given: what the model passes to each block.
        entered: what reaches the first block; it is only read.
        work: folder for hidden states.
    """
    states = HiddenStates(work / "influence", entered.shape, torch.float32)
    for window in range(len(entered)):
        states.write(window, entered.read(window))
    found = []
    for index in range(folder.depth):
        step("finding the blocks that change least", index, folder.depth)
        block = block_of(folder, index, given[index])
        total = 0.0
        for window in range(len(states)):
            before = states.read(window)
            after = block(before)
            total += float((1 - functional.cosine_similarity(before, after, dim=-1)).mean())
            states.write(window, after)
        found.append(total / len(states))
    states.remove()
    return found
