"""What each choice of each block does to the model's words, alone; and the tensors that it leaves, for trials.

For each block and choice the weights are solved once, with the dense model's inputs. Then what the choice changes is carried
through the dense blocks behind it up to the words: the divergence of the next word's distribution from the dense model's.
(ShortGPT's and Minitron's scores look at the block alone; how much later blocks make of an error differs by orders of magnitude.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError, first_line
from hwprune.language.part_choices import PartChoice, PartChoices
from hwprune.streaming.block_pruning import BlockPruner
from hwprune.streaming.blocks import DecoderBlock, block_of, entering, leaving, with_tensors
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.sublayers import silence
from hwprune.streaming.sweep_plan import SweepPlan

FILE = "damages.json"
FEWEST_BLOCKS = 4
"""Blocks below which nothing is known of how they differ."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokens for one purpose each; none is in two of them.

    Attributes:
        fitted: (windows, tokens) that weights are solved from.
        looked: that say what one choice alone does.
        held: that trials are scored on.
    """

    fitted: torch.Tensor
    looked: torch.Tensor
    held: torch.Tensor


@dataclass(frozen=True, slots=True)
class PartStore:
    """Tensors of solved choices, in files.

    Attributes:
        place: the folder.
        lengths: see `uneven.Uneven`.
        modules: ``attention``, ``mlp`` -> the module's name in a block.
    """

    place: Path
    lengths: Mapping[str, int]
    modules: Mapping[str, str]

    def path(self, index: int, choice: PartChoice) -> Path:
        """The file of a block's choice."""
        return self.place / f"{index:04d}-{choice.name}.safetensors"

    def save(
        self, index: int, choice: PartChoice, tensors: Mapping[str, torch.Tensor], dense: Mapping[str, torch.Tensor]
    ) -> None:
        """Keep the tensors that are others than the dense block's."""
        from safetensors.torch import save_file

        changed = {
            name: x.contiguous() for name, x in tensors.items() if x.shape != dense[name].shape or not torch.equal(x, dense[name])
        }
        self.place.mkdir(parents=True, exist_ok=True)
        partial = self.path(index, choice).with_suffix(".partial")
        save_file(changed, str(partial))
        partial.rename(self.path(index, choice))

    def tensors(self, index: int, chosen: Sequence[PartChoice], dense: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A block's tensors with a choice of each part. Branches that are gone have none."""
        from safetensors.torch import load_file

        found = dict(dense)
        for choice in chosen:
            if choice.pattern == choice.part:
                found = {name: x for name, x in found.items() if not name.startswith(f"{self.modules[choice.part]}.")}
            elif choice.pattern:
                found |= load_file(str(self.path(index, choice)))
        return found


@torch.no_grad()
def part_damages(
    folder: LanguageFolder, texts: Texts, choices: PartChoices, plan: SweepPlan, store: PartStore, work: Path, step: Tell = silent
) -> list[dict[str, float]]:
    """For each block `PartChoice.name` -> nats a token that this choice alone costs.

    Args:
        plan: how weights are solved.
        work: folder for hidden states, and for `FILE`, from which a killed run goes on.
    """
    if (work / FILE).is_file():
        return shrunk(read_json(work / FILE)["blocks"])
    ends = folder.ends()
    states, given = _entered(folder, ends, texts.fitted, work / "fitted")
    looked, looked_given = _entered(folder, ends, texts.looked, work / "looked")
    del ends
    fitted = list(range(len(texts.fitted)))
    streams: dict[tuple[int, str], torch.Tensor] = {}
    solvable = [one for one in choices.all if one.pattern != one.part]
    dense = torch.cat([looked.read(window) for window in range(len(looked))])
    for index in range(folder.depth):
        step("what each choice costs", index, folder.depth)
        block, beside = block_of(folder, index, given[index]), block_of(folder, index, looked_given[index])
        own = {name: x.detach() for name, x in block.layer.named_parameters()}
        pruner = BlockPruner(plan, f"{folder.blocks}.{index}", fitted, [])
        tensors = pruner.options(block, states, [[(one.pattern, one.share)] for one in solvable])
        for one, found in zip(solvable, tensors, strict=True):
            store.save(index, one, found, own)
        streams = {key: beside(stream) for key, stream in streams.items()}
        for choice in choices.all:
            changed = with_tensors(beside, store.tensors(index, [choice], own), store.lengths)
            streams[index, choice.name] = changed(dense)
        dense = beside(dense)
        for window in range(len(states)):
            states.write(window, block(states.read(window)))
    damages = _divergences(folder, texts.looked, dense, streams, step)
    states.remove()
    looked.remove()
    write_atomic(work / FILE, dump_json({"blocks": damages}))
    return shrunk(damages)


def shrunk(measured: Sequence[Mapping[str, Sequence[float]]]) -> list[dict[str, float]]:
    """Mean damages, drawn towards what their choice costs in all blocks as far as windows disagree.

    A knapsack takes what looks cheap, and so what came out cheap by chance. (Models of SmolLM2 that were chosen by damages of two
    windows cost a tenth to three tenths more than these add up to.) Empirical Bayes on the logarithms, with one noise a choice.

    Args:
        measured: of each block, choice -> the damage on each window.
    """
    found: list[dict[str, float]] = [{} for _ in measured]
    for name in measured[0]:
        values = np.array([block[name] for block in measured])  # (blocks, windows)
        means = values.mean(1)
        usable = np.isfinite(means) & (means > 0)
        if values.shape[1] < 2 or usable.sum() < FEWEST_BLOCKS:
            for block, mean in zip(found, means, strict=True):
                block[name] = float(mean)
            continue
        logs = np.log(means[usable])
        noise = float(np.median(values[usable].var(1, ddof=1) / values.shape[1] / means[usable] ** 2))
        centre = float(np.median(logs))
        spread = max(float(logs.var(ddof=1)) - noise, 0.0)
        weight = spread / (spread + noise) if spread + noise > 0 else 1.0
        for block, mean, known in zip(found, means, usable, strict=True):
            block[name] = math.exp(centre + weight * (math.log(mean) - centre)) if known else float(mean)
    return found


def _entered(
    folder: LanguageFolder, ends: torch.nn.Module, ids: torch.Tensor, path: Path
) -> tuple[HiddenStates, list[dict[str, Any]]]:
    first, given = entering(ends, folder.blocks, ids[:1])
    states = HiddenStates(path, (len(ids), first.shape[1], first.shape[2]), torch.float32)
    for window in range(len(ids)):
        states.write(window, entering(ends, folder.blocks, ids[window : window + 1])[0])
    return states, given


def _divergences(
    folder: LanguageFolder, ids: torch.Tensor, dense: torch.Tensor, streams: Mapping[tuple[int, str], torch.Tensor], step: Tell
) -> list[dict[str, list[float]]]:
    ends = folder.ends()
    wanted = [_words(ends, folder, ids, dense, window) for window in range(len(ids))]
    found: list[dict[str, list[float]]] = [{} for _ in range(folder.depth)]
    for place, ((index, name), stream) in enumerate(streams.items()):
        step("what each choice does to words", place, len(streams))
        found[index][name] = [divergence(wanted[w], _words(ends, folder, ids, stream, w)) for w in range(len(ids))]
    return found


def _words(ends: torch.nn.Module, folder: LanguageFolder, ids: torch.Tensor, stream: torch.Tensor, window: int) -> torch.Tensor:
    """(tokens, words) log-probabilities."""
    logits = leaving(ends, folder.blocks, ids[window : window + 1], stream[window : window + 1])
    return logits[0].float().log_softmax(-1)


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Mean over tokens of KL(wanted || found), in nats; of (tokens, words) log-probabilities. What is not finite is infinite."""
    value = float(torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True))
    return value if math.isfinite(value) else math.inf


def check_parts(block: DecoderBlock, hidden: torch.Tensor, parts: Sequence[str]) -> dict[str, str]:
    """Which parts of a block can't go as a whole, and why."""
    refused = {}
    for part in parts:
        try:
            silence(copy.deepcopy(block), [part], hidden)
        except UsageError as error:
            refused[part] = first_line(error)
    return refused
