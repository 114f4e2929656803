"""How much each block turns what passes it (ShortGPT, Men et al. 2024, arXiv 2403.03853), and each of its branches.

For a branch: how much what leaves the block turns when the branch is not there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from hwprune.common.telling import Tell, silent
from hwprune.streaming.blocks import block_of
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.sublayers import silence
from hwprune.streaming.sweep_plan import LAYER


@torch.no_grad()
def of_parts(
    folder: LanguageFolder,
    given: list[Any],
    entered: HiddenStates,
    work: Path,
    kinds: Sequence[str] = (LAYER,),
    step: Tell = silent,
) -> dict[str, list[float]]:
    """1 - cosine of what enters and what leaves each block, or of what leaves it with and without a branch.

    It is a mean over the tokens of all windows.

    Args:
        given: what the model passes to each block.
        entered: what reaches the first block; it is only read.
        work: folder for hidden states.
        kinds: ``layer`` for whole blocks, ``attention``, ``mlp``.

    Returns:
        kind -> a number for each block.
    """
    states = HiddenStates(work / "influence", entered.shape, torch.float32)
    for window in range(len(entered)):
        states.write(window, entered.read(window))
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for index in range(folder.depth):
        step("finding what changes least", index, folder.depth)
        block = block_of(folder, index, given[index])
        without = {kind: copy.deepcopy(block) for kind in kinds if kind != LAYER}
        for kind, one in without.items():
            silence(one, [kind], states.read(0))
        total = dict.fromkeys(kinds, 0.0)
        for window in range(len(states)):
            before = states.read(window)
            after = block(before)
            for kind in kinds:
                other = before if kind == LAYER else without[kind](before)
                total[kind] += float((1 - functional.cosine_similarity(other, after, dim=-1)).mean())
            states.write(window, after)
        for kind in kinds:
            found[kind].append(total[kind] / len(states))
    states.remove()
    return found
