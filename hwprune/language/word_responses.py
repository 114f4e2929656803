"""How a whole model's words respond to another choice in any of its blocks: one pass there and one back.

The divergence from the dense model near a model is taken as a quadratic of what choices change in the outputs of their blocks.
Its gradient says what each costs at once. Its curvature is Fisher's: the gradient of the log-likelihood of a word that the
model itself draws, times the change, for each token; products of two choices' say how their errors add up or cancel. How far it
holds for whole models of SmolLM2 is told in docs/figures/language.md. (Fisher's curvature for pruning: Hassibi and Stork 1992;
Kwon et al. 2022, arXiv 2204.09656, with products inside a layer. Here the products span the model.) That a change at one token
meets another's at a later one is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hwprune.common.telling import Tell, silent
from hwprune.language.part_choices import PARTS, Allocation, PartChoices
from hwprune.language.part_options import PartStore
from hwprune.streaming.blocks import DecoderBlock, block_of, entering, leaving, logits_of, with_tensors
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates

IMPOSSIBLE = 1e6
"""Nats that a choice costs whose output is not finite."""
TOGETHER = 8
"""Windows that go through a block at once."""
FEWEST_BLOCKS = 4
"""Blocks below which nothing is known of how they differ."""
ROBUST, FAR = 1.4826, 3.0
"""Standard deviation over median absolute deviation, and how many of them away a block is its own case."""


@dataclass(frozen=True, slots=True)
class Responses:
    """The quadratic near a model.

    Attributes:
        base: the model.
        divergence: its own, in nats a token, on the text that was looked at.
        linear: (choices,) nats; of all blocks, attention's choices before the MLP's, in the order of `row`.
        curvature: (choices, choices) nats; half of it is what two changes cost together beyond ``linear``.
        counts: choices of attention and of the MLP, the dense ones included.
    """

    base: tuple[tuple[int, int], ...]
    divergence: float
    linear: np.ndarray
    curvature: np.ndarray
    counts: tuple[int, int]

    def row(self, index: int, part: int, place: int) -> int:
        """Where a block's choice stands."""
        return index * sum(self.counts) + part * self.counts[0] + place

    def rows(self, allocation: Allocation) -> list[int]:
        """Where all that a model has stands."""
        return [self.row(index, part, place) for index, places in enumerate(allocation) for part, place in enumerate(places)]

    def expected(self, allocation: Allocation) -> float:
        """Nats a token that a model is predicted to be from the dense one."""
        rows = self.rows(allocation)
        return self.divergence + float(self.linear[rows].sum() + self.curvature[np.ix_(rows, rows)].sum() / 2)

    def save(self, path: Path) -> None:
        """To a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(
            partial, base=np.array(self.base), divergence=self.divergence, linear=self.linear, curvature=self.curvature,
            counts=np.array(self.counts),
        )  # fmt: skip
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> Responses:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            base = tuple((int(a), int(b)) for a, b in stored["base"])
            counts = (int(stored["counts"][0]), int(stored["counts"][1]))
            return cls(base, float(stored["divergence"]), stored["linear"], stored["curvature"], counts)


class Responder:
    """Finds `Responses` of models, block by block.

    Args:
        looked: (draws, windows, tokens). A model is looked at on one draw: what is cheap by chance on one is not on the next.
        work: folder for hidden states, and for what was found, which a killed run does not look for again.
    """

    def __init__(
        self,
        folder: LanguageFolder,
        looked: torch.Tensor,
        choices: PartChoices,
        store: PartStore,
        work: Path,
        step: Tell = silent,
    ) -> None:
        self._folder, self._looked, self._choices, self._store, self._work, self._step = (
            folder, looked, choices, store, work, step,
        )  # fmt: skip
        self._generator, self._count = torch.Generator(), 0

    def near(self, allocation: Allocation, draw: int) -> Responses:
        """Near a model, on the draw of that number (they come again after the last)."""
        draw %= len(self._looked)
        name = hashlib.sha256(json.dumps([draw, [list(one) for one in allocation]]).encode()).hexdigest()[:16]
        path = self._work / "responses" / f"{name}.npz"
        self._count += 1
        if not path.is_file():
            self._found(tuple((a, b) for a, b in allocation), self._looked[draw], draw).save(path)
        return Responses.load(path)

    def _found(self, base: tuple[tuple[int, int], ...], ids: torch.Tensor, draw: int) -> Responses:
        folder = self._folder
        ends = folder.ends()
        given = entering(ends, folder.blocks, ids[:1])[1]
        together = torch.split(ids, TOGETHER)
        dense = [torch.cat([entering(ends, folder.blocks, one[None])[0] for one in some]) for some in together]
        stream = dense
        states = [
            HiddenStates(self._work / "response" / str(index), (len(ids), *dense[0].shape[1:]), torch.float32)
            for index in range(folder.depth)
        ]
        for index in range(folder.depth):
            block = block_of(folder, index, given[index])
            with torch.no_grad():
                for window, hidden in enumerate(torch.cat(stream)):
                    states[index].write(window, hidden[None])
                chosen = self._chosen(block, index, base[index])
                stream = [hidden if chosen is None else chosen(hidden) for hidden in stream]
                dense = [block(hidden) for hidden in dense]
        self._generator.manual_seed(draw)
        total, pulls, draws = 0.0, [], []
        for some, wanted, hidden in zip(together, dense, stream, strict=True):
            found = [self._words(ends, some[n : n + 1], wanted[n : n + 1], hidden[n : n + 1]) for n in range(len(some))]
            total += sum(one[0] for one in found)
            pulls.append(torch.cat([one[1] for one in found]))
            draws.append(torch.cat([one[2] for one in found]))
        linear, features = self._back(base, states, given, pulls, draws)
        for one in states:
            one.remove()
        counts = (len(self._choices.attention), len(self._choices.mlp))
        means = shrunk(linear, base, counts)
        flat = features.reshape(len(features), -1)
        curvature = (flat @ flat.T / flat.shape[1]).astype(np.float64)
        impossible = ~(np.isfinite(means) & np.isfinite(np.diag(curvature)))
        means[impossible], curvature[impossible], curvature[:, impossible] = IMPOSSIBLE, 0.0, 0.0
        return Responses(base, total / ids.numel(), means, curvature, counts)

    def _chosen(self, block: DecoderBlock, index: int, places: Sequence[int]) -> DecoderBlock | None:
        """A block with these choices; None where nothing of it is left."""
        chosen = [self._choices.of(part)[place] for part, place in zip(PARTS, places, strict=True)]
        if all(one.pattern == one.part for one in chosen):
            return None
        if not any(one.pattern for one in chosen):
            return block
        own = {name: x.detach() for name, x in block.layer.named_parameters()}
        return with_tensors(block, self._store.tensors(index, chosen, own), self._store.lengths)

    def _words(
        self, ends: torch.nn.Module, ids: torch.Tensor, dense: torch.Tensor, stream: torch.Tensor
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Divergence, summed over a window's tokens; its gradient; and that of a drawn word's surprise."""
        wanted = leaving(ends, self._folder.blocks, ids, dense)[0].float().log_softmax(-1)
        hidden = stream.detach().requires_grad_()
        found = logits_of(ends, self._folder.blocks, ids, hidden)[0].float().log_softmax(-1)
        apart = (wanted.exp() * (wanted - found)).sum()
        (pull,) = torch.autograd.grad(apart, hidden, retain_graph=True)
        words = torch.multinomial(found.detach().exp(), 1, generator=self._generator)
        (drawn,) = torch.autograd.grad(-found.gather(1, words).sum(), hidden)
        return float(apart.detach()), pull, drawn

    def _back(
        self,
        base: Sequence[tuple[int, int]],
        states: Sequence[HiddenStates],
        given: Sequence[dict[str, object]],
        pulls: list[torch.Tensor],
        draws: list[torch.Tensor],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(choices, windows) nats, and (choices, windows, tokens) of the curvature, from the last block to the first."""
        counts = (len(self._choices.attention), len(self._choices.mlp))
        windows, tokens = sum(len(one) for one in pulls), pulls[0].shape[1]
        linear = np.zeros((len(base) * sum(counts), windows))
        features = np.zeros((len(base) * sum(counts), windows, tokens), np.float32)
        for index in reversed(range(len(base))):
            self._step(f"what the words of model {self._count} respond to", len(base) - 1 - index, len(base))
            block = block_of(self._folder, index, given[index])
            usual = self._chosen(block, index, base[index])
            before = torch.split(torch.cat([states[index].read(window) for window in range(windows)]), TOGETHER)
            with torch.no_grad():
                after = [hidden if usual is None else usual(hidden) for hidden in before]
                for part, count in enumerate(counts):
                    for place in range(count):
                        places = list(base[index])
                        if places[part] == place:
                            continue
                        places[part] = place
                        other, row = self._chosen(block, index, places), index * sum(counts) + part * counts[0] + place
                        for some, hidden in enumerate(before):
                            change = (hidden if other is None else other(hidden)) - after[some]
                            where = slice(some * TOGETHER, some * TOGETHER + len(hidden))
                            linear[row, where] = ((change * pulls[some]).sum((1, 2)) / tokens).numpy()
                            features[row, where] = (change * draws[some]).sum(-1).numpy()
            if usual is not None:
                usual.requires_grad_(False)
                for some, hidden in enumerate(before):
                    entered = hidden.clone().requires_grad_()
                    made = usual(entered)
                    (pull,) = torch.autograd.grad(made, entered, pulls[some], retain_graph=True)
                    (drawn,) = torch.autograd.grad(made, entered, draws[some])
                    pulls[some], draws[some] = pull, drawn
        return linear, features


def shrunk(linear: np.ndarray, base: Sequence[Sequence[int]], counts: tuple[int, int]) -> np.ndarray:
    """What each block's choice costs, drawn towards what that choice costs in the other blocks, as far as windows disagree.

    Search takes what looks cheap, and so what came out cheap by chance. Empirical Bayes with one noise a choice; blocks far from
    all others are left alone, and so are models of fewer than four blocks.

    Args:
        linear: (choices, windows) nats, beside the choices of ``base``; see `Responses`.

    Returns:
        (choices,) means.
    """
    windows = linear.shape[1]
    found: np.ndarray = linear.reshape(len(base), sum(counts), windows).mean(2)
    if len(base) < FEWEST_BLOCKS or windows < 2:
        return found.reshape(-1)
    for part, start in enumerate((0, counts[0])):
        values = linear.reshape(len(base), sum(counts), windows)[:, start : start + counts[part]]
        costs = values - values[:, :1]  # beside the dense choice, which all blocks have in common
        means = costs.mean(2)
        for place in range(1, counts[part]):
            usable = np.isfinite(costs[:, place]).all(1)
            if usable.sum() < FEWEST_BLOCKS:
                continue
            noise = float(np.median(costs[usable, place].var(1, ddof=1))) / windows
            centre = float(np.median(means[usable, place]))
            spread = (ROBUST * float(np.median(np.abs(means[usable, place] - centre)))) ** 2
            near = usable & (np.abs(means[:, place] - centre) <= FAR * math.sqrt(max(spread, noise)))
            weight = max(spread - noise, 0.0) / spread if spread > 0 else 1.0
            means[near, place] = centre + weight * (means[near, place] - centre)
        kept = [places[part] for places in base]
        found[:, start : start + counts[part]] = means - means[np.arange(len(base)), kept][:, None]
    return found.reshape(-1)
