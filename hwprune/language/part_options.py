"""The tensors that each choice of each block leaves, solved once with the dense model's inputs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hwprune.common import formatting
from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.errors import RunError, UsageError, first_line
from hwprune.language.part_choices import PartChoice, PartChoices
from hwprune.streaming.block_pruning import BlockPruner
from hwprune.streaming.blocks import DecoderBlock, block_of, entering
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.sublayers import silence
from hwprune.streaming.sweep_plan import SweepPlan

FILE = "options.json"


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokens for one purpose each; none is in two of them.

    Attributes:
        fitted: (windows, tokens) that weights are solved from.
        looked: (draw, windows, tokens); near each model, what words respond to is looked at on another draw.
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
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        changed = {
            name: x.contiguous() for name, x in tensors.items() if x.shape != dense[name].shape or not torch.equal(x, dense[name])
        }
        self.place.mkdir(parents=True, exist_ok=True)
        partial = self.path(index, choice).with_suffix(".partial")
        try:
            save_file(changed, str(partial))
        except SafetensorError as error:  # a full disk, too
            raise RunError(f"{partial} can't be written: {first_line(error)}; go on with --resume") from error
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


def check_room(work: Path, needed: float) -> None:
    """Raises `UsageError` where a search needs more of the disk than there is.

    Args:
        work: folder for `FILE`; what a killed run has left there counts.
        needed: bytes, with all that is there already.
    """
    free, there = shutil.disk_usage(work).free, sum(one.stat().st_size for one in work.rglob("*") if one.is_file())
    if needed > free + there and not (work / FILE).is_file():
        more = formatting.size(needed - there)
        raise UsageError(
            f"this search needs about {more} of disk in {work}, where {formatting.size(free)} are free: free some and go on with "
            "--resume, or give --out another place"
        )


def stored_bytes(samples: Mapping[str, Mapping[str, torch.Tensor]], choices: PartChoices, store: PartStore) -> float:
    """Bytes that one block's solved choices take.

    Args:
        samples: `PartChoice.name` -> tensors of a block with that choice, for their shapes.
    """
    total = 0.0
    for one in choices.all:
        if one.pattern and one.pattern != one.part:
            of_part = f"{store.modules[one.part]}."
            total += sum(4.0 * x.numel() for name, x in samples[one.name].items() if name.startswith(of_part))
    return total


@torch.no_grad()
def solve_options(
    folder: LanguageFolder,
    fitted: torch.Tensor,
    choices: PartChoices,
    plan: SweepPlan,
    store: PartStore,
    work: Path,
    step: Tell = silent,
) -> None:
    """Solve each choice of each block with what the dense model gives it, and keep the tensors.

    Args:
        fitted: (windows, tokens).
        plan: how weights are solved.
        work: folder for hidden states, and for `FILE`, which says that all are there.

    Raises:
        UsageError: another version's choices are there.
    """
    solvable = [one for one in choices.all if one.pattern != one.part]
    if (work / FILE).is_file():
        if read_json(work / FILE)["choices"] != [one.name for one in solvable]:
            raise UsageError(f"{work} was left by another version of hwprune, with other choices: begin in a new --out")
        return
    ends = folder.ends()
    first, given = entering(ends, folder.blocks, fitted[:1])
    states = HiddenStates(work / "fitted", (len(fitted), first.shape[1], first.shape[2]), torch.float32)
    for window in range(len(fitted)):
        states.write(window, entering(ends, folder.blocks, fitted[window : window + 1])[0])
    del ends
    for index in range(folder.depth):
        step("solving the weights of each choice", index, folder.depth)
        block = block_of(folder, index, given[index])
        own = {name: x.detach() for name, x in block.layer.named_parameters()}
        pruner = BlockPruner(plan, f"{folder.blocks}.{index}", list(range(len(fitted))), [])
        tensors = pruner.options(block, states, [[(one.pattern, one.share)] for one in solvable])
        for one, found in zip(solvable, tensors, strict=True):
            store.save(index, one, found, own)
        for window in range(len(states)):
            states.write(window, block(states.read(window)))
    states.remove()
    write_atomic(work / FILE, dump_json({"blocks": folder.depth, "choices": [one.name for one in solvable]}))


def check_parts(block: DecoderBlock, hidden: torch.Tensor, parts: Sequence[str]) -> dict[str, str]:
    """Which parts of a block can't go as a whole, and why."""
    refused = {}
    for part in parts:
        try:
            silence(copy.deepcopy(block), [part], hidden)
        except UsageError as error:
            refused[part] = first_line(error)
    return refused
