"""Which neurons, groups, branches and blocks go, learned from text with a gate for each of them.

Gates are hard-concrete (Louizos et al. 2018, arXiv 1712.01312): while they are learned each is open, shut or between by chance.
Of every kind so many stay open as are to stay, in expectation, and the gates that are missed most when they are shut are the ones
that stay (Sheared LLaMA, Xia et al. 2024, arXiv 2310.06694). The dense model's words are the target. Two things are done
otherwise: the number of open gates is met in every step, by the multiplier that meets it, and no weight learns. The paper learns
from 0.4 billion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from hwprune.common.telling import Tell, silent
from hwprune.criteria import Criterion
from hwprune.errors import UsageError
from hwprune.layers.part import READS, Part
from hwprune.layers.statistics import LayerStatistics
from hwprune.streaming import cached_onnx
from hwprune.streaming.block_pruning import NEURON, PREFIX, BlockPruner, Readers
from hwprune.streaming.blocks import block_of, entering
from hwprune.streaming.distilling import BATCH, count_of, teacher_words
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.sublayers import ATTENTION, MLP, names_of
from hwprune.streaming.sweep_plan import KV, LAYER, SweepPlan

NAME = "learned"
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
"""Ends of a stretched gate, and how sharp it is: Louizos et al.'s."""
OPEN = 2.0
"""Logarithm of a gate's odds at first."""
REACH = 30.0
"""How far the logarithm of the odds of a gate as important as most can move in all steps together."""
WARM_UP = 0.5
"""Part of the steps in which as many gates shut as are to go."""
MOMENTUM = 0.9
TAKEN = (NEURON, KV, ATTENTION, MLP, LAYER)
"""Patterns whose units have gates."""


@final
class Learned(Criterion):
    """Scores that are known: of the units that one block's linear layers read.

    Args:
        scores: name of a reading layer's weight, as in a `DecoderBlock` -> scores of its units.
    """

    ranking = NAME
    description = "gates that were learned from text"
    on_weights = False

    def __init__(self, name: str, scores: Mapping[str, torch.Tensor]) -> None:
        self.name, self._scores = name, scores

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:  # noqa: ARG002
        raise self._no_weights()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        found = [self._scores[part.parameter] for part in parts if part.kind == READS and part.parameter in self._scores]
        if not found:
            raise UsageError(f"criterion {self.name}: these units have no gates")
        return found[0] - found[0].min()


@dataclass(frozen=True, slots=True)
class GateScores:
    """What was learned.

    Attributes:
        scores: pattern -> (blocks, units), or (1, blocks) where whole blocks or branches have gates; high stays.
        readers: of each pattern of units in a block, see `BlockPruner.readers`.
    """

    scores: Mapping[str, torch.Tensor]
    readers: Mapping[str, Readers]

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        from safetensors.torch import save_file

        tensors = {f"scores/{pattern}": x.contiguous() for pattern, x in self.scores.items()}
        for pattern, readers in self.readers.items():
            tensors |= {f"readers/{pattern}/{name}": x.contiguous() for name, x in readers.items()}
        partial = path.with_suffix(".partial")
        save_file(tensors, str(partial))
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> GateScores:
        """What `save` wrote."""
        from safetensors.torch import load_file

        scores, readers = dict[str, torch.Tensor](), dict[str, dict[str, torch.Tensor]]()
        for key, x in load_file(str(path)).items():
            kind, pattern, *name = key.split("/")
            if kind == "scores":
                scores[pattern] = x
            else:
                readers.setdefault(pattern, {})[name[0]] = x
        return cls(scores, readers)

    def of_block(self, name: str, index: int) -> Learned:
        """The criterion of one block."""
        scores = {
            f"{PREFIX}{reader}.weight": self.scores[pattern][index]
            for pattern, readers in self.readers.items()
            for reader in readers
        }
        return Learned(name, scores)

    def of_blocks(self, kind: str) -> list[float]:
        """A score for each block: of it, of its attention, or of its MLP."""
        return [float(score) for score in self.scores[kind][0]]


class HardConcrete(nn.Module):
    """Gates of one kind: each row keeps so many of its own open.

    Args:
        rows, columns: how many; share: of each row that goes.
    """

    def __init__(self, rows: int, columns: int, share: float) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.full((rows, columns), OPEN))
        self.share = share
        self.moving = torch.zeros(rows, columns)

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Gates from 0 to 1."""
        chance = torch.rand(self.odds.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        stretched = torch.sigmoid((chance.logit() + self.odds) / TEMPERATURE) * (HIGH - LOW) + LOW
        return stretched.clamp(0, 1)

    def kept(self, odds: torch.Tensor) -> torch.Tensor:
        """(rows,): the share of gates that are not shut, in expectation."""
        return torch.sigmoid(odds - TEMPERATURE * math.log(-LOW / HIGH)).mean(dim=1)

    @torch.no_grad()
    def learn(self, rate: float, gone: float) -> None:
        """One step, after which ``gone`` of what is to go is shut, in expectation."""
        assert self.odds.grad is not None
        # Within a row sizes of gradients count: they say what is missed. Between rows they don't, each has its own number.
        size = self.odds.grad.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-30)
        self.moving.mul_(MOMENTUM).add_(self.odds.grad / size, alpha=1 - MOMENTUM)
        self.odds.sub_(rate * self.moving)
        wanted = 1 - self.share * gone
        low, high = torch.full((len(self.odds), 1), -50.0), torch.full((len(self.odds), 1), 50.0)
        for _ in range(60):
            middle = (low + high) / 2
            more = (self.kept(self.odds + middle) < wanted)[:, None]
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        self.odds.add_((low + high) / 2)


def tokens_of(criterion: str) -> int | None:
    """``learned:TOKENS``, such as learned:30k; None: another criterion. Raises `UsageError`."""
    name, colon, count = criterion.partition(":")
    if name != NAME:
        return None
    if not colon or not count_of(count):
        raise UsageError(f"--criterion {NAME} takes the tokens that it learns from: {NAME}:30k, got {criterion!r}")
    return count_of(count)


def check(plan: SweepPlan) -> None:
    """Raises `UsageError` where gates are asked for what has none."""
    if tokens_of(plan.criterion) is None:
        return
    if plan.by_block:
        raise UsageError(f"--criterion {NAME} is for the same share of all blocks: PATTERN=SPARSITY")
    if other := [name for name, _ in plan.patterns if name not in TAKEN]:
        raise UsageError(f"--criterion {NAME} takes {', '.join(TAKEN)}, got {other[0]}")


def learn(
    folder: LanguageFolder, plan: SweepPlan, ids: torch.Tensor, work: Path, step: Tell = silent, seed: int = 0
) -> GateScores:
    """Learn gates for the units of a plan; the whole model is in memory meanwhile.

    Args:
        ids: (windows, tokens) of text that judges nothing.
        work: folder for the dense model's distributions.

    Raises:
        UsageError: a pattern's units have no gates in this class, or blocks have different sizes.
    """
    tokens = tokens_of(plan.criterion)
    assert tokens is not None
    if folder.uneven:
        raise UsageError(f"--criterion {NAME} is for models whose blocks have the same sizes")
    steps = max(2, math.ceil(tokens / (ids.shape[1] * BATCH)))
    readers = _readers(folder, plan, ids, work)
    targets = teacher_words(folder, ids, range(min(len(ids), steps * BATCH)), work / "teacher", step)
    model: Any = cached_onnx.loaded(folder.path).requires_grad_(False)
    gates: dict[str, HardConcrete] = {}
    for name, share in plan.patterns:
        rows = (folder.depth, len(next(iter(readers[name].values())))) if name in readers else (1, folder.depth)
        gates[name] = HardConcrete(*rows, share)
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    learned = min(len(ids), steps * BATCH)
    for number in range(steps):
        step("learning what is missed", number, steps)
        drawn = {name: one.draw(generator) for name, one in gates.items()}
        applied = {name: x.detach().requires_grad_() for name, x in drawn.items()}
        handles = _applied(model.get_submodule(folder.blocks), applied, readers)
        for _ in range(BATCH):
            order = order or torch.randperm(learned, generator=generator).tolist()
            window = order.pop()
            logits = model(input_ids=ids[window : window + 1], use_cache=False).logits[0]
            targets.divergence(window, logits).backward(retain_graph=True)  # type: ignore[no-untyped-call]
        for handle in handles:
            handle.remove()
        torch.autograd.backward([*drawn.values()], [x.grad for x in applied.values()])
        gone = min(1.0, (number + 1) / max(1.0, WARM_UP * steps))
        for one in gates.values():
            one.learn(REACH / steps, gone)
            one.odds.grad = None
    return GateScores({name: one.odds.detach() for name, one in gates.items()}, readers)


def _readers(folder: LanguageFolder, plan: SweepPlan, ids: torch.Tensor, work: Path) -> dict[str, Readers]:
    """The layers that read the units, of each pattern of units in a block."""
    names = [name for name, _ in plan.of_blocks]
    if not names:
        return {}
    hidden, given = entering(folder.ends(), folder.blocks, ids[:1])
    states = HiddenStates(work / "gated", (1, *hidden.shape[1:]), torch.float32)
    states.write(0, hidden)
    found = BlockPruner(plan, f"{folder.blocks}.0", [0], []).readers(block_of(folder, 0, given[0]), states)
    states.remove()
    for name in names:
        if name not in found:
            raise UsageError(f"--criterion {NAME}: no linear layer reads what {name} cuts in {folder.kind.__name__}")
    return {name: found[name] for name in names}


def _applied(blocks: nn.Module, drawn: Mapping[str, torch.Tensor], readers: Mapping[str, Readers]) -> list[Any]:
    """Hooks that multiply by gates."""
    handles = []
    for index, layer in enumerate(blocks.children()):
        for pattern, named in readers.items():
            for name, positions in named.items():
                gates = drawn[pattern][index]
                scale = gates.new_ones(int(positions.max()) + 1).scatter(
                    0, positions.reshape(-1), gates.repeat_interleave(positions.shape[1])
                )
                handles.append(layer.get_submodule(name).register_forward_pre_hook(_scaled_input(scale)))
        branches = names_of(layer) if {ATTENTION, MLP, LAYER} & drawn.keys() else {}
        for kind, name in branches.items():
            for pattern in (kind, LAYER):
                if pattern in drawn:
                    handles.append(layer.get_submodule(name).register_forward_hook(_scaled_output(drawn[pattern][0, index])))
    return handles


def _scaled_input(scale: torch.Tensor) -> Any:
    return lambda _module, inputs: (inputs[0] * scale, *inputs[1:])


def _scaled_output(scale: torch.Tensor) -> Any:
    def scaled(_module: nn.Module, _inputs: Any, made: Any) -> Any:
        return (made[0] * scale, *made[1:]) if isinstance(made, tuple) else made * scale

    return scaled
