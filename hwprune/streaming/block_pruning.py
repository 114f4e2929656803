"""One block of a language model pruned: masked layer by layer, or cut by the graph of the block and fitted anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hwprune import patterns
from hwprune.errors import UsageError
from hwprune.layers.part import READS
from hwprune.methods import method
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.streaming.block_masks import BlockMasks
from hwprune.streaming.blocks import DecoderBlock
from hwprune.streaming.folder import fill
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.input_sums import BlockInputs
from hwprune.streaming.refitting import refit
from hwprune.streaming.sweep_plan import KV, QUERY, SweepPlan
from hwprune.streaming.uneven_model import Silent
from hwprune.streaming.width import Width, narrowed
from hwprune.workload.workload import Workload

NEURON, HEAD = "neuron", "head"
Readers = Mapping[str, torch.Tensor]
"""Name of a linear layer in a block -> (units, k): its inputs that belong to each unit."""
PREFIX = "layer."
"""How names of a `DecoderBlock`'s tensors begin."""


class BlockPruner:
    """Prunes one block.

    Args:
        name: of the block in the model.
        fitted, held: windows that repairs are fitted to, and windows that decide whether a repair stays.
    """

    def __init__(self, plan: SweepPlan, name: str, fitted: Sequence[int], held: Sequence[int]) -> None:
        self.plan, self.name, self.fitted, self.held = plan, name, fitted, held

    @torch.no_grad()
    def prune(
        self,
        block: DecoderBlock,
        inputs: HiddenStates,
        dense: HiddenStates,
        wanted: HiddenStates,
        *,
        whole: bool = True,
    ) -> tuple[nn.Module, list[str]]:
        """The block with its units cut and masked, and the names of what has lost its repair again.

        Args:
            block: the dense one, or what is left of it without a branch; it may be changed.
            inputs, dense: what enters it after the pruned blocks, and in the dense model.
            wanted: what leaves it in the dense model.
            whole: has the block both of its branches? If not, its layers are not fitted to the dense stream: what they lack of
                their inputs they can't make up for, and what they fit instead made SmolLM2 worse (`docs/figures/language.md`).
        """
        chosen = self.plan.of_blocks
        if not chosen:
            # Blocks or branches before have gone: what is left makes up for them as far as it can.
            if self.plan.compensation == "none" or not whole or torch.equal(inputs.read(0), dense.read(0)):
                return block, []
            return self._aimed(block, BlockInputs(block, inputs, self.fitted, self.held, block, dense), wanted), []
        if all(not _cuts(name) and name != patterns.BRANCH for name, _ in chosen):
            resolved = method.get(self.plan.criterion)
            if BlockMasks.can(block, resolved, self.plan.compensation):
                return block, self._masked(block, inputs, dense if whole else None, resolved)
        made, left_out = self._cut(block, inputs, wanted)
        # A fit fills masks: it is for blocks that are cut alone.
        if self.plan.compensation == "none" or made is block or not whole or not all(_cuts(name) for name, _ in chosen):
            return made, left_out
        return self._aimed(made, BlockInputs(block, inputs, self.fitted, self.held, block, dense), wanted), left_out

    @torch.no_grad()
    def options(
        self, block: DecoderBlock, inputs: HiddenStates, wanted: Sequence[Sequence[tuple[str, float]]]
    ) -> list[dict[str, torch.Tensor]]:
        """The block's tensors with each of several choices, all fitted to the same inputs, which are looked at once.

        Args:
            wanted: for each option the patterns with their shares.

        Raises:
            UsageError: the block does not take a pattern.
        """
        pruner = self._pruner(block, inputs, sorted([*self.fitted, *self.held]))
        found = []
        for chosen in wanted:
            one = BlockPruner(replace(self.plan, patterns=chosen, by_block=()), self.name, self.fitted, self.held)
            found.append(block_tensors(self._candidate(pruner, one._choices(pruner), self.plan.compensation)))
        return found

    @torch.no_grad()
    def sizes(self, block: DecoderBlock, inputs: HiddenStates) -> dict[str, int]:
        """``neuron``, ``kv``, ``query`` (in each group) -> how many there are; what can't be cut is left out."""
        pruner = self._pruner(block, inputs, self.fitted[:1])
        neurons = [unit.size for unit in pruner.units.values() if unit.role == NEURON]
        groups = groups_of(pruner)
        found = {NEURON: neurons[0]} if len(neurons) == 1 else {}
        if groups is None:
            return found
        queries = [
            unit.size for unit in pruner.units.values() if unit.role == HEAD and unit.axis is not None and unit.name != groups
        ]
        return found | {KV: pruner.units[groups].size} | ({QUERY: queries[0]} if len(queries) == 1 else {})

    @torch.no_grad()
    def readers(self, block: DecoderBlock, inputs: HiddenStates) -> dict[str, Readers]:
        """``neuron``, ``kv`` -> the linear layers that read these units; what none reads is left out."""
        pruner = self._pruner(block, inputs, self.fitted[:1])
        neurons = [unit for unit in pruner.units.values() if unit.role == NEURON]
        groups = groups_of(pruner)
        units = {NEURON: neurons[0]} if len(neurons) == 1 else {}
        units |= {} if groups is None else {KV: pruner.units[groups]}
        found: dict[str, Readers] = {}
        for name, unit in units.items():
            read = [part for part in unit.parts if part.kind == READS]
            if read:
                found[name] = {part.parameter.removeprefix(PREFIX).removesuffix(".weight"): part.positions for part in read}
        return found

    @torch.no_grad()
    def narrow(
        self,
        block: DecoderBlock,
        layer: nn.Module,
        width: Width,
        inputs: HiddenStates,
        dense: HiddenStates,
        wanted: HiddenStates,
        *,
        whole: bool,
    ) -> tuple[DecoderBlock, bool]:
        """The block without some channels of the stream, fitted to the dense stream where it gains by it, and if it did.

        Args:
            layer: a block of the narrow model, which is filled.
            width: for the names in the block.
            inputs: what enters it after the pruned blocks, with the channels that stay.
            dense, wanted: what enters and leaves the dense block; of ``wanted`` the channels that stay.
            whole: see `prune`.
        """
        made = narrowed(block, layer, width, dense, self.fitted)
        if self.plan.compensation == "none" or not whole:
            return made, True
        fitted = DecoderBlock(copy.deepcopy(made.layer), made.given).eval()
        refit(BlockInputs(fitted, inputs, self.fitted, self.held, block, dense), lambda unit: not self._excluded(unit), width)
        helps = self._error(fitted, inputs, wanted) < self._error(made, inputs, wanted)
        return (fitted if helps else made), helps

    def _masked(
        self, block: DecoderBlock, inputs: HiddenStates, dense: HiddenStates | None, resolved: method.Method
    ) -> list[str]:
        beside = (copy.deepcopy(block), dense) if self.plan.compensation != "none" and dense is not None else ()
        masks = BlockMasks(BlockInputs(block, inputs, self.fitted, self.held, *beside), self.plan.compensation)
        left_out: list[str] = []
        for pattern, share in self.plan.of_blocks:
            left_out += masks.run(resolved, patterns.get(pattern), share, lambda unit: not self._excluded(unit))
        return [f"{self.name}.{name}" for name in left_out]

    def _aimed(self, made: nn.Module, inputs: BlockInputs, wanted: HiddenStates) -> nn.Module:
        """The cut block fitted to the dense stream, where its class holds such sizes and the block gains by it.

        Windows that were held out have chosen how far each layer moves; here the whole block is asked whether nothing went wrong.
        """
        assert inputs.dense_block is not None
        layer = copy.deepcopy(inputs.dense_block.layer)
        fill(layer, block_tensors(made))
        block = DecoderBlock(layer, inputs.dense_block.given).eval()
        one = inputs.entering.read(0)
        try:
            same = torch.allclose(block(one), made(one), rtol=1e-3, atol=1e-4)
        except Exception:  # the class reads a size from its configuration
            return made
        if not same:
            return made
        before = self._error(made, inputs.entering, wanted)
        refit(replace(inputs, block=block), lambda unit: not self._excluded(unit))
        return block if self._error(block, inputs.entering, wanted) < before else made

    def _cut(self, block: DecoderBlock, inputs: HiddenStates, wanted: HiddenStates) -> tuple[nn.Module, list[str]]:
        """By the graph of the whole block."""
        refits = self.plan.compensation != "none"
        everything = sorted([*self.fitted, *self.held])
        first = self._pruner(block, inputs, self.fitted if refits else everything)
        choices = self._choices(first)
        if not choices:
            return block, []
        plain = self._candidate(first, choices, "none")
        if not refits:
            return plain, []
        refitted = self._candidate(first, choices, self.plan.compensation)
        if self._error(plain, inputs, wanted) <= self._error(refitted, inputs, wanted):
            return plain, [self.name]
        del first, plain, refitted
        last = self._pruner(block, inputs, everything)
        return self._candidate(last, self._choices(last), self.plan.compensation), []

    def _pruner(self, block: DecoderBlock, inputs: HiddenStates, which: Sequence[int]) -> Pruner:
        """A pruner of the block that calibrates on some windows of what the pruned blocks before have made."""
        data = _Windows(inputs, which)
        workload = Workload(self.name, block, (inputs.read(0),), data, data, metric="agreement", class_axis="none")
        with torch.enable_grad():
            return Pruner(workload)

    def _candidate(self, pruner: Pruner, choices: Sequence[UnitChoice], compensation: str) -> nn.Module:
        with torch.enable_grad():
            return pruner.prune(Recipe(tuple(choices), compensation)).module.eval()

    def _choices(self, pruner: Pruner) -> list[UnitChoice]:
        found: list[UnitChoice] = []
        part_is_gone = any(isinstance(part, Silent) for part in pruner.workload.model.modules())
        for name, share in self.plan.of_blocks:
            try:
                with torch.enable_grad():
                    pattern = HEAD if name in (KV, QUERY) else name
                    recipe = uniform_recipe(pruner, pattern, share, self.plan.criterion, self.plan.compensation)
            except UsageError:
                if part_is_gone:  # and with it what this pattern is for
                    continue
                raise
            chosen = recipe.choices
            if name in (KV, QUERY):
                chosen = tuple(choice for choice in chosen if (choice.unit == groups_of(pruner)) == (name == KV))
                if not chosen and not part_is_gone:
                    raise UsageError(f"{self.name} has no {'key-value groups' if name == KV else 'queries that share a group'}")
            found += [self._rounded(pruner, choice) for choice in chosen if not self._excluded(choice.unit)]
        return found

    def _rounded(self, pruner: Pruner, choice: UnitChoice) -> UnitChoice:
        """With a size that kernels and the blocks of quantised types divide."""
        if choice.pattern != NEURON:
            return choice
        size = pruner.units[choice.unit].size
        return replace(choice, sparsity=1 - self.plan.kept(size, choice.sparsity) / size)

    def _excluded(self, unit: str) -> bool:
        return self.plan.excludes(f"{self.name}.{unit.removeprefix(PREFIX)}")

    def _error(self, module: nn.Module, inputs: HiddenStates, wanted: HiddenStates) -> float:
        return sum(float((module(inputs.read(w)) - wanted.read(w)).double().square().sum()) for w in self.held)


def _cuts(name: str) -> bool:
    return name in (KV, QUERY) or patterns.is_axis(name)


def groups_of(pruner: Pruner) -> str | None:
    """The unit of a block's key-value groups: of those of heads the one that most tensors have; None: there is none."""
    heads = [unit for unit in pruner.units.values() if unit.role == HEAD and unit.axis is not None]
    return max(heads, key=lambda unit: len(unit.axis.members)).name if heads else None  # type: ignore[union-attr]


def block_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A pruned block's tensors by their names in the block."""
    return {name.removeprefix(PREFIX): x.detach().clone() for name, x in module.state_dict().items() if name.startswith(PREFIX)}


class _Windows:
    """Hidden states of some windows as a loader."""

    def __init__(self, states: HiddenStates, which: Sequence[int]) -> None:
        self.states, self.which = states, which

    def __iter__(self) -> Any:
        return ((self.states.read(window), None) for window in self.which)
