"""What a whole allocation does to words that no choice was made by, with the weights that each choice was solved to alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from hwprune.language.part_choices import PARTS, Allocation, PartChoice, PartChoices
from hwprune.language.part_options import PartStore
from hwprune.streaming.blocks import block_of, entering, leaving, with_tensors
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates


@dataclass(frozen=True, slots=True)
class Score:
    """What held-out text says.

    Attributes:
        divergence: nats a token from the dense model's distribution of the next word.
        perplexity: of the same tokens.
    """

    divergence: float
    perplexity: float


class TrialScorer:
    """Runs allocations block by block; the dense model runs once.

    Args:
        held: (windows, tokens) that nothing else has seen.
        work: folder for hidden states.
    """

    def __init__(self, folder: LanguageFolder, held: torch.Tensor, choices: PartChoices, store: PartStore, work: Path) -> None:
        self._folder, self._held, self._choices, self._store = folder, held, choices, store
        ends = folder.ends()
        first, self._given = entering(ends, folder.blocks, held[:1])
        self._entered = HiddenStates(work / "held", (len(held), first.shape[1], first.shape[2]), torch.float32)
        for window in range(len(held)):
            self._entered.write(window, entering(ends, folder.blocks, held[window : window + 1])[0])
        self._dense = self._run([(0, 0)] * folder.depth)

    def chosen(self, places: tuple[int, int]) -> list[PartChoice]:
        """A block's choices."""
        return [self._choices.of(part)[place] for part, place in zip(PARTS, places, strict=True)]

    def tensors(self, allocation: Allocation) -> list[Mapping[str, torch.Tensor]]:
        """Each block's tensors; of blocks that are gone there are none."""
        found: list[Mapping[str, torch.Tensor]] = []
        for index, places in enumerate(allocation):
            chosen = self.chosen(places)
            if not all(one.pattern == one.part for one in chosen):
                found.append(self._store.tensors(index, chosen, self._own(index)))
        return found

    @torch.no_grad()
    def score(self, allocation: Allocation) -> Score:
        """Divergence and perplexity."""
        stream, ends = self._run(allocation), self._folder.ends()
        apart = loss = 0.0
        for window in range(len(self._held)):
            ids = self._held[window : window + 1]
            wanted, found = (
                leaving(ends, self._folder.blocks, ids, one[window : window + 1])[0].float().log_softmax(-1)
                for one in (self._dense, stream)
            )
            apart += divergence(wanted, found)
            loss += float(functional.nll_loss(found[:-1], ids[0, 1:]))
        count = len(self._held)
        return Score(apart / count, math.exp(min(loss / count, 700.0)))

    def _own(self, index: int) -> dict[str, torch.Tensor]:
        start = f"{self._folder.blocks}.{index}."
        loaded = self._folder.load(self._folder.block_tensors(index))
        return {name.removeprefix(start): x.float() for name, x in loaded.items()}

    @torch.no_grad()
    def _run(self, allocation: Allocation) -> torch.Tensor:
        stream = torch.cat([self._entered.read(window) for window in range(len(self._held))])
        for index, places in enumerate(allocation):
            chosen = self.chosen(places)
            if all(one.pattern == one.part for one in chosen):
                continue
            block = block_of(self._folder, index, self._given[index])
            if any(one.pattern for one in chosen):
                own = {name: x.detach() for name, x in block.layer.named_parameters()}
                block = with_tensors(block, self._store.tensors(index, chosen, own), self._store.lengths)
            stream = block(stream)
        return stream


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Mean over tokens of KL(wanted || found), in nats; of (tokens, words) log-probabilities. What is not finite is infinite."""
    value = float(functional.kl_div(found, wanted, reduction="batchmean", log_target=True))
    return value if math.isfinite(value) else math.inf
