"""Pruning a language model block by block: one block in memory, what flows through it on disk, every finished block kept."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError
from hwprune.methods import method
from hwprune.streaming import influence, learned_masks
from hwprune.streaming.block_pruning import BlockPruner, block_tensors
from hwprune.streaming.blocks import DecoderBlock, block_of, entering
from hwprune.streaming.channel_costs import channel_costs
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import Channels, HiddenStates
from hwprune.streaming.sublayers import KINDS, silence
from hwprune.streaming.sweep_plan import HIDDEN, LAYER, WHOLE, SweepPlan
from hwprune.streaming.width import Width, count_near, dims_of, narrow_skeleton, narrowed_ends

HELD_OUT = 4
"""Every fourth window tells whether a refit that has not seen it helps. If so, the refit is made again with all windows."""
STATE = "state.json"
GATES = "gates.safetensors"
ENDS = "ends.safetensors"
"""The tensors outside the blocks, where they are others than the dense model's."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What the sweep made.

    Attributes:
        kept: blocks of the dense model that are still there, in order.
        silent: ``attention``, ``mlp`` -> those of them that have lost it.
        errors: of each kept block: mean square of the difference from the dense stream on held-out windows, over the variance of
            the dense one.
        plain: blocks, or layers in them, whose repair did not help held-out windows, and was left out.
        width: channels of the dense model's stream that are still there, in order; empty: all are.
    """

    kept: list[int]
    silent: dict[str, list[int]] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    width: list[int] = field(default_factory=list)


class Sweep:
    """The sweep, resumable after every block.

    Args:
        folder: the dense model.
        ids: (windows, tokens) for calibration.
        plan: what is done.
        work: folder for finished blocks and hidden states; one that a killed sweep of the same plan has left is gone on with.
        dtype: of the hidden states on disk.
        text: (windows, tokens) that gates are learned from, where the plan's criterion learns them.

    Attributes:
        owns_work: what is in ``work`` is this sweep's own, since `run` has looked at it.

    Raises:
        UsageError: ``work`` belongs to another sweep, or the plan is for another number of blocks.
    """

    def __init__(
        self,
        folder: LanguageFolder,
        ids: torch.Tensor,
        plan: SweepPlan,
        work: Path,
        dtype: torch.dtype = torch.float32,
        step: Tell = silent,
        text: torch.Tensor | None = None,
    ) -> None:
        learned_masks.check(plan)
        self.text = ids if text is None else text
        self._gates: learned_masks.GateScores | None = None
        self.folder, self.ids, self.plan, self.work, self.dtype, self.step = folder, ids, plan, work, dtype, step
        if plan.by_block and len(plan.by_block) != folder.depth:
            raise UsageError(f"the plan has {len(plan.by_block)} blocks, the model {folder.depth}")
        self.owns_work = False
        self._narrow_skeleton: nn.Module | None = None
        self.held = [w for w in range(len(ids)) if w % HELD_OUT == HELD_OUT - 1] or [0]
        self.fitted = [w for w in range(len(ids)) if w not in self.held] or [0]
        self._key = {
            "plan": json.loads(json.dumps(asdict(plan))), "source": str(folder.path.resolve()), "windows": list(ids.shape),
            "tokens": int(ids.sum()), "dtype": str(dtype),
        }  # fmt: skip

    @torch.no_grad()
    def run(self, check: Callable[[Swept], None] = lambda _done: None) -> Swept:
        """Prune every block; finished ones are in `block_file`.

        Args:
            check: looks at the first block as soon as it is there, so that what can't be written is known before the others.
        """
        ends = self.folder.ends()
        first, given = entering(ends, self.folder.blocks, self.ids[:1])
        shape = (len(self.ids), first.shape[1], first.shape[2])
        done = self._begun()
        self.owns_work = True
        if done is None:
            dense = self._stream("dense", shape, 0)
            for window in range(len(self.ids)):
                dense.write(window, entering(ends, self.folder.blocks, self.ids[window : window + 1])[0])
            del ends
            self._learn()
            kept, gone = self._kept(given, dense)
            done = Swept(kept, gone, width=self._channels(given, dense, kept, gone))
            pruned = self._stream("pruned", self._narrow(done, shape), 0)
            entered = self._as_wide(done, dense)
            for window in range(len(self.ids)):
                pruned.write(window, entered.read(window))
            self._save(done)
        else:
            del ends
            self._learn()
        for place in range(len(done.errors), len(done.kept)):
            self.step("pruning blocks", place, len(done.kept))
            self._block(done, place, given, shape)
            if place == 0:
                check(done)
        if done.width:
            self._finish_ends(done, shape)
        return done

    def block_file(self, place: int) -> Path:
        """Tensors of the block at this place among the kept ones, by their names in the block."""
        return self.work / f"block-{place:04d}.safetensors"

    def _finish_ends(self, done: Swept, shape: tuple[int, int, int]) -> None:
        from safetensors.torch import save_file

        last = len(done.kept)
        dense, pruned = self._stream("dense", shape, last), self._stream("pruned", self._narrow(done, shape), last)
        tensors = narrowed_ends(
            self.folder, self._narrow_model(self._width(done)), self._width(done), self.ids, dense, pruned, self.fitted
        )
        save_file(tensors, str(self.work / ENDS))

    def other_tensors(self, done: Swept) -> dict[str, torch.Tensor]:
        """The tensors of the pruned model that are in no block."""
        from safetensors.torch import load_file

        if (self.work / ENDS).is_file():
            return load_file(str(self.work / ENDS))
        tensors = self.folder.load(self.folder.other_tensors())
        return self._width(done).cut(tensors) if done.width else tensors

    def shapes(self, done: Swept) -> dict[str, tuple[int, ...]]:
        """Name of each parameter outside the blocks -> its shape in the pruned model."""
        shapes = {name: tuple(x.shape) for name, x in self.folder.skeleton.named_parameters(remove_duplicate=False)}
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{self.folder.blocks}.")}
        return {name: self._width(done).shape(name, shape) for name, shape in shapes.items()} if done.width else shapes

    def _block(self, done: Swept, place: int, given: list[Any], shape: tuple[int, int, int]) -> None:
        from safetensors.torch import save_file

        (dense_in, dense_out), (pruned_in, pruned_out) = (
            (self._stream(name, size, place), self._stream(name, size, place + 1))
            for name, size in (("dense", shape), ("pruned", self._narrow(done, shape)))
        )
        index = done.kept[place]
        # The dense stream goes through dropped blocks too. What entered stays as it is, for one who goes on after a kill.
        source, passed = dense_in, HiddenStates(self.work / "passed", shape, self.dtype)
        for before in range(done.kept[place - 1] + 1 if place else 0, index):
            self._advance(block_of(self.folder, before, given[before]), source, passed)
            source = passed
        block = block_of(self.folder, index, given[index])
        self._advance(block, source, dense_out)
        pruner = BlockPruner(self.plan.of(index), f"{self.folder.blocks}.{index}", self.fitted, self.held)
        if gone := [kind for kind, places in done.silent.items() if index in places]:
            silence(block, gone, source.read(0))
        wanted_out = self._as_wide(done, dense_out)
        if done.width:
            width = self._width(done)
            layer = copy.deepcopy(self._narrow_model(width).get_submodule(f"{self.folder.blocks}.{index}"))
            width = width.of(f"{self.folder.blocks}.{index}.")
            block, helped = pruner.narrow(block, layer, width, pruned_in, source, wanted_out, whole=not gone)
            done.plain.extend([] if helped else [pruner.name])
            source = pruned_in  # what else is cut in it is held against the narrow block
        with contextlib.nullcontext() if self._gates is None else method.also(self._gates.of_block(self.plan.criterion, index)):
            module, plain = pruner.prune(block, pruned_in, source, wanted_out, whole=not gone)
        error = spread = 0.0
        for window in range(len(self.ids)):
            made = module(pruned_in.read(window))
            pruned_out.write(window, made)
            if window in self.held:
                wanted = wanted_out.read(window)
                error += float((made - wanted).double().square().sum())
                spread += float((wanted - wanted.mean()).double().square().sum())
        tensors = block_tensors(module)
        save_file(tensors, str(self.block_file(place)))
        done.errors.append(error / max(spread, 1e-30))
        done.plain.extend(plain)
        self._save(done)
        for finished in (dense_in, pruned_in, passed):
            finished.remove()

    def _advance(self, block: DecoderBlock, entering_it: HiddenStates, leaving_it: HiddenStates) -> None:
        for window in range(len(self.ids)):
            leaving_it.write(window, block(entering_it.read(window)))

    def _kept(self, given: list[Any], entered: HiddenStates) -> tuple[list[int], dict[str, list[int]]]:
        """The blocks that stay, and those of them that lose a branch."""
        shares = {kind: share for kind, share in self.plan.patterns if kind in WHOLE and kind != HIDDEN}
        kept, depth = list(range(self.folder.depth)), self.folder.depth
        if self.plan.by_block:
            kept = [index for index in kept if index not in self.plan.lost(LAYER)]
            lost = {kind: [index for index in self.plan.lost(kind) if index in kept] for kind in KINDS}
            return kept, {kind: places for kind, places in lost.items() if places}
        if not shares:
            return kept, {}
        if self._gates is None:
            scores = influence.of_parts(self.folder, given, entered, self.work, list(shares), self.step)
        else:
            scores = {kind: self._gates.of_blocks(kind) for kind in shares}
        if LAYER in shares:
            gone = set(sorted(kept, key=lambda index: scores[LAYER][index])[: round(shares[LAYER] * depth)])
            kept = [index for index in kept if index not in gone]
        silent = {}
        for kind, share in shares.items():
            if kind != LAYER:
                order = sorted((scores[kind][index], index) for index in kept)
                silent[kind] = sorted(index for _, index in order[: round(share * depth)])
        return kept, silent

    def _learn(self) -> None:
        """Gates, where the criterion learns them; those of a killed sweep are there already."""
        if learned_masks.tokens_of(self.plan.criterion) is None:
            return
        file = self.work / GATES
        if not file.is_file():
            with torch.enable_grad():
                learned_masks.learn(self.folder, self.plan, self.text, self.work / "learning", self.step).save(file)
            shutil.rmtree(self.work / "learning")
        self._gates = learned_masks.GateScores.load(file)

    def _channels(self, given: list[Any], entered: HiddenStates, kept: list[int], gone: dict[str, list[int]]) -> list[int]:
        """The channels of the stream that stay; none are named if all do."""
        share = dict(self.plan.patterns).get(HIDDEN)
        if share is None:
            return []
        dims, size = dims_of(self.folder), entered.shape[-1]
        count = count_near(self.folder, dims, size - round(share * size), self.plan.multiple, strict=self.plan.strict)
        self._narrow_model(Width(torch.arange(count), dims))  # what can't be is known before minutes of work
        costs = channel_costs(
            self.folder, given, entered, self.work, dims, (self.fitted, self.held), self.ids,
            refitted=self.plan.compensation != "none", kept=kept, gone=gone, step=self.step,
        )  # fmt: skip
        return [int(channel) for channel in costs.topk(count).indices.sort().values]

    def _width(self, done: Swept) -> Width:
        return Width(torch.tensor(done.width), dims_of(self.folder))

    def _narrow_model(self, width: Width) -> nn.Module:
        if self._narrow_skeleton is None:
            self._narrow_skeleton = narrow_skeleton(self.folder, width)
        return self._narrow_skeleton

    def _narrow(self, done: Swept, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return (*shape[:2], len(done.width)) if done.width else shape

    def _as_wide(self, done: Swept, states: HiddenStates) -> HiddenStates:
        """The channels of the dense stream that the pruned one has."""
        return Channels(states, torch.tensor(done.width)) if done.width else states

    def _stream(self, name: str, shape: tuple[int, int, int], place: int) -> HiddenStates:
        return HiddenStates(self.work / f"{name}-{place:04d}", shape, self.dtype)

    def _begun(self) -> Swept | None:
        """What a killed sweep has finished."""
        if not (self.work / STATE).is_file():
            if self.work.exists():
                shutil.rmtree(self.work)
            self.work.mkdir(parents=True)
            return None
        state = read_json(self.work / STATE)
        if state["key"] != self._key:
            raise UsageError(f"{self.work} was left by another sweep (other patterns, text or model): delete it to begin anew")
        return Swept(**state["done"])

    def _save(self, done: Swept) -> None:
        write_atomic(self.work / STATE, dump_json({"key": self._key, "done": asdict(done)}))
