"""Pruning a language model block by block: one block in memory, what flows through it on disk, every finished block kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune import patterns
from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError
from hwprune.methods import method
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.streaming import influence
from hwprune.streaming.blocks import DecoderBlock, block_of, entering
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.masking import BlockMasks
from hwprune.workload.workload import Workload

LAYER = "layer"
"""Pattern of whole blocks: the fraction of them that goes, those first that turn what passes them least."""
HELD_OUT = 4
"""Every fourth window tells whether a refit that has not seen it helps. If so, the refit is made again with all windows."""
STATE = "state.json"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is done to every block.

    Attributes:
        patterns: (pattern, sparsity), as for `uniform_recipe`, and `LAYER`.
        criterion: or a method.
        compensation: of the kept weights, with what the pruned blocks before have made as inputs.
        exclude: shell patterns of units that stay as they are, such as ``*.self_attn.*``.
    """

    patterns: Sequence[tuple[str, float]]
    criterion: str
    compensation: str
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, share in self.patterns:
            if name == LAYER and not 0 < share < 1:
                raise UsageError(f"layer={share:g}: the fraction of the blocks that goes must be between 0 and 1")


@dataclass(frozen=True, slots=True)
class Swept:
    """What the sweep made.

    Attributes:
        kept: blocks of the dense model that are still there, in order.
        errors: of each kept block: mean square of the difference from the dense stream on held-out windows, over the variance of
            the dense one.
        plain: blocks, or layers in them, whose repair did not help held-out windows, and was left out.
    """

    kept: list[int]
    errors: list[float] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)


class Sweep:
    """The sweep, resumable after every block.

    Args:
        folder: the dense model.
        ids: (windows, tokens) for calibration.
        plan: what is done.
        work: folder for finished blocks and hidden states; one that a killed sweep of the same plan has left is gone on with.
        dtype: of the hidden states on disk.

    Attributes:
        owns_work: what is in ``work`` is this sweep's own, since `run` has looked at it.

    Raises:
        UsageError: ``work`` belongs to another sweep.
    """

    def __init__(
        self,
        folder: LanguageFolder,
        ids: torch.Tensor,
        plan: SweepPlan,
        work: Path,
        dtype: torch.dtype = torch.float32,
        step: Tell = silent,
    ) -> None:
        self.folder, self.ids, self.plan, self.work, self.dtype, self.step = folder, ids, plan, work, dtype, step
        self.owns_work = False
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
            dense, pruned = self._streams(shape, 0)
            for window in range(len(self.ids)):
                made = entering(ends, self.folder.blocks, self.ids[window : window + 1])[0]
                dense.write(window, made)
                pruned.write(window, made)
            del ends
            done = Swept(self._kept(given, dense))
            self._save(done)
        else:
            del ends
        for place in range(len(done.errors), len(done.kept)):
            self.step("pruning blocks", place, len(done.kept))
            self._block(done, place, given, shape)
            if place == 0:
                check(done)
        return done

    def block_file(self, place: int) -> Path:
        """Tensors of the block at this place among the kept ones, by their names in the block."""
        return self.work / f"block-{place:04d}.safetensors"

    def _block(self, done: Swept, place: int, given: list[Any], shape: tuple[int, int, int]) -> None:
        from safetensors.torch import save_file

        dense_in, pruned_in = self._streams(shape, place)
        dense_out, pruned_out = self._streams(shape, place + 1)
        index = done.kept[place]
        # The dense stream goes through dropped blocks too. What entered stays as it is, for one who goes on after a kill.
        source, passed = dense_in, HiddenStates(self.work / "passed", shape, self.dtype)
        for before in range(done.kept[place - 1] + 1 if place else 0, index):
            self._advance(block_of(self.folder, before, given[before]), source, passed)
            source = passed
        block = block_of(self.folder, index, given[index])
        self._advance(block, source, dense_out)
        module, plain = self._pruned(block, index, pruned_in, dense_out, source)
        error = spread = 0.0
        for window in range(len(self.ids)):
            made = module(pruned_in.read(window))
            pruned_out.write(window, made)
            if window in self.held:
                wanted = dense_out.read(window)
                error += float((made - wanted).double().square().sum())
                spread += float((wanted - wanted.mean()).double().square().sum())
        start = "layer."
        tensors = {
            name.removeprefix(start): x.detach().contiguous() for name, x in module.state_dict().items() if name.startswith(start)
        }
        save_file(tensors, str(self.block_file(place)))
        done.errors.append(error / max(spread, 1e-30))
        done.plain.extend(plain)
        self._save(done)
        for finished in (dense_in, pruned_in, passed):
            finished.remove()

    def _advance(self, block: DecoderBlock, entering_it: HiddenStates, leaving_it: HiddenStates) -> None:
        for window in range(len(self.ids)):
            leaving_it.write(window, block(entering_it.read(window)))

    def _pruned(
        self, block: DecoderBlock, index: int, inputs: HiddenStates, wanted: HiddenStates, dense: HiddenStates
    ) -> tuple[nn.Module, list[str]]:
        """The block with its units cut and masked, and the names of what has lost its repair again.

        Args:
            inputs, dense: what enters it after the pruned blocks, and in the dense model.
            wanted: what leaves it in the dense model.
        """
        chosen = [(name, share) for name, share in self.plan.patterns if name != LAYER]
        if not chosen:
            return block, []
        if all(not patterns.is_axis(name) and name != patterns.BRANCH for name, _ in chosen):
            resolved = method.get(self.plan.criterion)
            if BlockMasks.can(block, resolved, self.plan.compensation):
                masks = BlockMasks(block, inputs, self.fitted, self.held, self.plan.compensation, dense)
                left_out = [
                    name
                    for pattern, share in chosen
                    for name in masks.run(resolved, patterns.get(pattern), share, lambda unit: not self._excluded(unit, index))
                ]
                return block, [f"{self.folder.blocks}.{index}.{name}" for name in left_out]
        return self._cut(block, index, inputs, wanted, chosen)

    def _cut(
        self, block: DecoderBlock, index: int, inputs: HiddenStates, wanted: HiddenStates, chosen: Sequence[tuple[str, float]]
    ) -> tuple[nn.Module, list[str]]:
        """The same by the graph of the whole block: structured cuts need it."""
        refits = self.plan.compensation != "none"
        everything = range(len(self.ids))
        first = self._pruner(block, index, inputs, self.fitted if refits else everything)
        choices = self._choices(first, index, chosen)
        if not choices:
            return block, []
        plain = self._candidate(first, choices, "none")
        if not refits:
            return plain.module.eval(), []
        refitted = self._candidate(first, choices, self.plan.compensation)
        if self._error(plain, inputs, wanted) <= self._error(refitted, inputs, wanted):
            return plain.module.eval(), [f"{self.folder.blocks}.{index}"]
        del first, plain, refitted
        last = self._pruner(block, index, inputs, everything)
        return self._candidate(last, self._choices(last, index, chosen), self.plan.compensation).module.eval(), []

    def _pruner(self, block: DecoderBlock, index: int, inputs: HiddenStates, which: Sequence[int]) -> Pruner:
        """A pruner of one block that calibrates on some windows of what the pruned blocks before have made."""
        data = _Windows(inputs, which)
        workload = Workload(f"block {index}", block, (inputs.read(0),), data, data, metric="agreement", class_axis="none")
        with torch.enable_grad():
            return Pruner(workload)

    def _candidate(self, pruner: Pruner, choices: Sequence[UnitChoice], compensation: str) -> Candidate:
        with torch.enable_grad():
            return pruner.prune(Recipe(tuple(choices), compensation))

    def _choices(self, pruner: Pruner, index: int, chosen: Sequence[tuple[str, float]]) -> list[UnitChoice]:
        found: list[UnitChoice] = []
        for name, share in chosen:
            with torch.enable_grad():
                recipe = uniform_recipe(pruner, name, share, self.plan.criterion, self.plan.compensation)
            found += [choice for choice in recipe.choices if not self._excluded(choice.unit, index)]
        return found

    def _excluded(self, unit: str, index: int) -> bool:
        name = f"{self.folder.blocks}.{index}.{unit.removeprefix('layer.')}"
        return any(fnmatchcase(name, glob) for glob in self.plan.exclude)

    def _error(self, candidate: Candidate, inputs: HiddenStates, wanted: HiddenStates) -> float:
        module = candidate.module.eval()
        return sum(float((module(inputs.read(w)) - wanted.read(w)).double().square().sum()) for w in self.held)

    def _kept(self, given: list[Any], entered: HiddenStates) -> list[int]:
        """The blocks that stay."""
        share = dict(self.plan.patterns).get(LAYER)
        everything = list(range(self.folder.depth))
        if share is None:
            return everything
        scores = influence.of_blocks(self.folder, given, entered, self.work, self.step)
        count = round(share * len(everything))
        gone = set(sorted(everything, key=lambda index: scores[index])[:count])
        return [index for index in everything if index not in gone]

    def _streams(self, shape: tuple[int, int, int], place: int) -> tuple[HiddenStates, HiddenStates]:
        dense, pruned = (HiddenStates(self.work / f"{name}-{place:04d}", shape, self.dtype) for name in ("dense", "pruned"))
        return dense, pruned

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


class _Windows:
    """Hidden states of some windows as a loader."""

    def __init__(self, states: HiddenStates, which: Sequence[int]) -> None:
        self.states, self.which = states, which

    def __iter__(self) -> Any:
        return ((self.states.read(window), None) for window in self.which)
