"""What an option does to the model's outputs, to second order, from one backward pass; no forward pass an option.

For an example n, labels y_n drawn from the model's own distribution, g = d log p(y_n) / d(a layer's outputs) and an option that
changes these outputs by dY,

    a[n, option] = <dY, g>        KL(dense || pruned) ~ 1/2 mean_n (sum of a[n, chosen options])^2

(methods 5.3: the Fisher, or Gauss-Newton, quadratic of the divergence, along the directions in question.) In a layer that is
solved for, dY = dW x + shift; a dropped branch takes away its value. With fewer tokens the outputs of the whole model are
compared, at a few levels, because there is no layer whose outputs they change alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hwprune.calibration import gradients
from hwprune.layers.part import READS
from hwprune.layers.units import Unit
from hwprune.methods.layerwise import Solution
from hwprune.methods.method import Option
from hwprune.structure.model_graph import ModelGraph
from hwprune.workload import batches
from hwprune.workload.workload import Workload, all_tensors

EXAMPLES = 512
"""Calibration examples that are used. One label is drawn for each, so that a[n] is noisy, but their mean square is not."""

LEAST_EXAMPLES = 64
"""Those that are used where there is no time for more."""

SAMPLED_LEVELS = 3
"""Levels of tokens at which the model is run; straight lines over the fraction that goes between them."""

MEMORY_LIMIT = 1_500_000_000
"""Bytes of changed weights held at once."""


def responses(
    graph: ModelGraph,
    workload: Workload,
    units: Mapping[str, Unit],
    wanted: Mapping[str, tuple[str, int]],
    options: Callable[[str], Sequence[Option]],
    branches: Iterable[str] = (),
    examples: int = EXAMPLES,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    late: Callable[[], bool] = lambda: False,
    tokens: Mapping[str, tuple[str, Sequence[float]]] | None = None,
) -> dict[str, torch.Tensor]:
    """a of every option: key -> (examples, options of the key), float32; branches by their own name, (examples, 1).

    Args:
        wanted: key -> (unit, how many options).
        options: gives the options of a key, of the dense model; asked for once, and again only if they don't fit into
            `MEMORY_LIMIT` together with the others: then the data are gone through several times.
        progress: told how many examples are done, and of how many.
        late: asked after each batch of the first pass; True: `LEAST_EXAMPLES` have to do, for all passes.
        tokens: key -> (unit, fractions of its tokens that go).

    Raises:
        WorkloadError: the calibration data can't be used.
        UsageError: the model's output has no gradient.
    """
    sides = {name: graph.branch(name).side for name in branches}
    answers: dict[str, torch.Tensor] = {}
    fewer = {key: _FewerTokens(graph, units[unit], levels) for key, (unit, levels) in (tokens or {}).items()}
    passes = _passes(units, wanted)
    each = min(examples, batches.example_count(workload))
    for number, keys in enumerate(passes):

        def enough(done: int, number: int = number, each: int = each) -> bool:
            progress(number * each + done, len(passes) * each)
            return not number and done >= LEAST_EXAMPLES and late()

        variants = {key: options(key) for key in keys}
        extra = ({}, {}) if number else (sides, fewer)
        answers |= _one_pass(graph, workload, units, variants, *extra, examples, seed, enough)
        if not number:
            examples = each = next((len(rows) for rows in answers.values()), examples)
    return answers


def _passes(units: Mapping[str, Unit], wanted: Mapping[str, tuple[str, int]]) -> list[list[str]]:
    """Keys whose changed weights fit into memory together; at least one pass, for the branches."""
    passes: list[list[str]] = [[]]
    held = 0
    for key, (unit, count) in wanted.items():
        need = 4 * count * sum(part.tensor.numel() for part in units[unit].parts if part.kind == READS)
        if passes[-1] and held + need > MEMORY_LIMIT:
            passes.append([])
            held = 0
        passes[-1].append(key)
        held += need
    return passes


def _one_pass(
    graph: ModelGraph,
    workload: Workload,
    units: Mapping[str, Unit],
    options: Mapping[str, Sequence[Option]],
    sides: Mapping[str, int],
    fewer: Mapping[str, _FewerTokens],
    examples: int,
    seed: int,
    enough: Callable[[int], bool],
) -> dict[str, torch.Tensor]:
    by_layer: dict[str, list[str]] = {}
    for key, variants in options.items():
        for part in units[variants[0].unit].parts:
            if part.kind == READS:
                by_layer.setdefault(part.parameter, []).append(key)
    weights = dict(graph.module.named_parameters(remove_duplicate=False))
    matrices = {matrix.parameter: matrix for matrix in graph.matrices}
    layers = []
    for name, keys in by_layer.items():
        dense = matrices[name].rows(weights[name].detach()).float()
        layers.append(_Layer(name, keys, dense.shape, *_changes(dense, [o for key in keys for o in options[key]], units, name)))
    rows: dict[str, list[torch.Tensor]] = {key: [] for key in (*options, *sides, *fewer)}
    done = 0
    for batch in gradients.backward(graph, workload, sides, examples, seed):
        responses = {key: torch.zeros(batch.examples, len(variants)) for key, variants in options.items()}
        for layer in layers:
            answer = layer.responses(batch)
            if answer is None:
                continue
            start = 0
            for key in layer.keys:
                responses[key] += answer[:, start : start + len(options[key])].cpu()
                start += len(options[key])
        for key, value in responses.items():
            rows[key].append(value)
        for name in sides:
            rows[name].append(_without(batch, name))
        for key, one in fewer.items():
            rows[key].append(one.responses(batch))
        done += batch.examples
        if enough(done):
            break
    return {key: torch.cat(value) for key, value in rows.items() if value}


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer, and what the options of ``keys`` change in it: weights (options, elements) and constants (options, outputs)."""

    name: str
    keys: Sequence[str]
    shape: torch.Size
    moved: torch.Tensor
    shifts: torch.Tensor | None

    def responses(self, batch: gradients.Backward) -> torch.Tensor | None:
        """(examples, options); None if no gradient reaches the layer."""
        pairs = batch.layers.get(self.name, [])
        by_example = gradients.example_gradients(pairs, batch.examples, self.shape.numel())
        parts = [gradient.reshape(len(gradient), -1) @ self.moved.T for gradient in by_example]
        if not parts:
            return None
        answers = torch.cat(parts)
        if self.shifts is not None:
            sums = [g.float().sum(dim=2).reshape(batch.examples, -1, self.shape[0]).sum(dim=1) for _, g in pairs]
            answers = answers + torch.stack(sums).sum(dim=0) @ self.shifts.T
        return answers


class _FewerTokens:
    """The model with fewer tokens at one border, at a few of the levels."""

    def __init__(self, graph: ModelGraph, unit: Unit, levels: Sequence[float]) -> None:
        self.levels = levels
        last = len(levels) - 1
        # The least is run, too: divergence grows faster there than the square of what goes.
        self.places = sorted({round(last * n / (SAMPLED_LEVELS - 1)) for n in range(SAMPLED_LEVELS)})
        keep = torch.arange(unit.size)
        self.modules = [
            graph.cut({unit.name: keep < unit.size - round(levels[place] * unit.size)}).eval() for place in self.places
        ]

    @torch.no_grad()
    def responses(self, batch: gradients.Backward) -> torch.Tensor:
        """(examples, levels)."""
        columns = []
        for module in self.modules:
            now = all_tensors(module(*batch.inputs))
            change = torch.zeros(batch.examples)
            for place, before, gradient in batch.outputs:
                if before.ndim and len(before) == batch.examples:
                    product = (now[place].float() - before.float()) * gradient.float()
                    change += product.reshape(batch.examples, -1).sum(dim=1).cpu()
            columns.append(change.numpy())
        at = [0.0, *(self.levels[place] for place in self.places)]
        table = np.stack([np.zeros(batch.examples), *columns], axis=1)
        return torch.from_numpy(np.stack([np.interp(self.levels, at, row) for row in table])).float()


def _without(batch: gradients.Backward, name: str) -> torch.Tensor:
    """(examples, 1): the response to a branch that is dropped."""
    if name not in batch.sums:
        return torch.zeros(batch.examples, 1)
    value, gradient = batch.sums[name]
    return -(value.float() * gradient.float()).reshape(batch.examples, -1).sum(dim=1, keepdim=True).cpu()


def _changes(
    dense: torch.Tensor, options: Sequence[Option], units: Mapping[str, Unit], name: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(options, elements of the weight) and, if any moves its outputs by a constant, (options, outputs)."""
    moved, shifts = [], []
    for option in options:
        solution: Solution | None = option.solutions.get(name)
        if solution is not None:
            new = solution.weight.to(dense)
            whole = torch.zeros_like(dense)
            if new.shape == dense.shape:
                whole = new
            else:  # only the columns that stay
                whole[:, _kept(option, units, name, dense)] = new
            shifts.append(torch.zeros(len(dense)) if solution.shift is None else solution.shift.float().reshape(-1))
        else:
            whole = dense.clone()
            unit = units[option.unit]
            if unit.axis is None:
                whole = dense * option.keep.reshape(dense.shape).to(dense)
            else:
                gone = torch.ones(dense.shape[1], dtype=torch.bool)
                gone[_kept(option, units, name, dense)] = False
                whole[:, gone] = 0
            shifts.append(torch.zeros(len(dense)))
        moved.append((whole - dense).reshape(-1))
    constant = torch.stack(shifts)
    return torch.stack(moved), constant.to(dense) if bool(constant.any()) else None


def _kept(option: Option, units: Mapping[str, Unit], name: str, dense: torch.Tensor) -> torch.Tensor:
    """Positions along the inputs of a layer that an option of an axis leaves, in order."""
    part = next(part for part in units[option.unit].parts if part.parameter == name and part.kind == READS)
    stays = torch.ones(dense.shape[1], dtype=torch.bool)
    stays[part.positions[~option.keep].reshape(-1)] = False
    return stays.nonzero().squeeze(1)
