"""What the dense model computes on the calibration data, as far as sequential compensation asks for it; found once.

Targets of layers are values of the dense model at fixed random positions. They do not depend on the candidate, so that the dense
model runs once, and no dense input is ever unfolded.

A quarter of the examples is held out: nothing is fitted to them. They decide how far each refit is to be trusted. Examples are
what is independent, not rows: 32 tokens of one sentence, or 1,024 positions of one image, say little more than a few of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import torch
from torch import fx

from hwprune.calibration.passes import full_precision
from hwprune.calibration.sufficient import MOST_EXAMPLES
from hwprune.compensation.base import Context
from hwprune.compensation.batchnorm import Moments, moments
from hwprune.compensation.lockstep import BATCH, Inputs, Steps, peak_bytes
from hwprune.layers import layer as layer_table
from hwprune.layers.layer import Layer
from hwprune.workload.batches import splittable

BATCH_NORM = torch.ops.aten.batch_norm.default
MEMORY_LIMIT = 1_500_000_000
"""Bytes of activations of a candidate that may be held at once."""
HELD_OUT = 4
"""One example in so many is held out."""
MIN_ROWS, ROWS_PER_COLUMN = 6144, 8
"""Positions that a layer's least squares sees at least, and for each of the dense layer's columns."""
TARGET_BYTES = 500_000_000
"""Bytes of the targets of all layers together."""
NORM_EXAMPLES = 128
"""Examples from which a norm's statistics are carried over, see `hwprune.compensation.batchnorm`."""
KEY = "dense side"


@dataclass(slots=True, eq=False)
class LayerTargets:
    """A dense layer at fixed positions.

    Attributes:
        places: for each batch the positions (rows,), numbered as `Layer.patches` has them.
        targets: for each batch the dense layer's outputs there, (G, rows, out / G), float32, without the layer's own bias.
    """

    layer: Layer
    places: list[torch.Tensor] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)

    def leading(self, columns: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Places and targets of each batch, as many as so many columns ask for: places are in a random order."""
        share = _wanted_rows(columns) / _wanted_rows(prod(self.layer.matrix.shape[1:]))
        counts = [ceil(min(share, 1.0) * len(places)) for places in self.places]
        return [(p[:n], t[:, :n]) for p, t, n in zip(self.places, self.targets, counts, strict=True)]


@dataclass(slots=True, eq=False)
class DenseSide:
    """The dense model's part of a lockstep walk.

    Attributes:
        batches: inputs; the examples are in a random order where the batch is free.
        held_out: for each batch, whether nothing may be fitted to it.
        layers: node -> its targets.
        norms: batch norm's node -> moments of its inputs in the leading batches.
    """

    batches: list[Inputs]
    held_out: list[bool]
    layers: dict[str, LayerTargets] = field(default_factory=dict)
    norms: dict[str, Moments] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        return sum(len(inputs[0]) for inputs in self.batches)

    def norm_batches(self) -> list[int]:
        """Batches that norms' statistics come from."""
        taken: list[int] = []
        count = 0
        for number, inputs in enumerate(self.batches):
            if count >= NORM_EXAMPLES:
                break
            taken.append(number)
            count += len(inputs[0])
        return taken


def dense_side(context: Context) -> DenseSide:
    """The dense side of a model, made at the first call. Without calibration data it has no batches."""
    if KEY not in context.cache:
        context.cache[KEY] = _collect(context)
    made: DenseSide = context.cache[KEY]
    return made


def _divided(context: Context) -> tuple[list[Inputs], list[bool]]:
    """Batches to fit to, and batches that are held out: a random sample of the calibration examples, which are read once."""
    generator = torch.Generator().manual_seed(0)
    given: list[Inputs] = []
    keys: list[torch.Tensor] = []
    """A random number for each example; those with the least are kept."""
    allowed, apart = 0, bool(context.dense.meta.get("free_batch", True))
    for inputs in context.batches():
        allowed = allowed or _allowed(context, inputs)
        apart = apart and splittable(inputs) and all(_alike(x, y) for x, y in zip(inputs, (given or [inputs])[0], strict=True))
        given.append(tuple(inputs))
        keys.append(torch.rand(len(inputs[0]), generator=generator))
        if apart and sum(map(len, keys)) > 4 * allowed:
            given, keys = _least(given, keys, 2 * allowed)
        elif not apart and sum(map(len, keys)) >= allowed:
            break
    if not given:
        return [], []
    if not apart:  # whole batches, at random: neighbours may be alike
        held = set(torch.randperm(len(given), generator=generator)[: len(given) // HELD_OUT].tolist())
        return given, [number in held for number in range(len(given))]
    (whole,), _ = _least(given, keys, allowed)
    count, held_count = len(whole[0]), len(whole[0]) // HELD_OUT
    batches, flags = [], []
    for first, last, flag in ((held_count, count, False), (0, held_count, True)):
        for place in range(first, last, BATCH):
            batches.append(tuple(x[place : min(place + BATCH, last)] for x in whole))
            flags.append(flag)
    return batches, flags


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype


def _least(given: Sequence[Inputs], keys: Sequence[torch.Tensor], most: int) -> tuple[list[Inputs], list[torch.Tensor]]:
    """The examples with the least keys, in their order, as one batch."""
    whole, key = tuple(torch.cat(column) for column in zip(*given, strict=True)), torch.cat(list(keys))
    order = key.argsort()[:most]
    return [tuple(x[order.to(x.device)] for x in whole)], [key[order]]


def _allowed(context: Context, inputs: Inputs) -> int:
    """Examples that memory and patience allow."""
    free = context.dense.meta.get("free_batch", True) and splittable(inputs)
    part = tuple(x[:BATCH] for x in inputs) if free else inputs
    each = max(1, peak_bytes(context.dense, part) // max(1, len(part[0])))
    return max(1, min(MOST_EXAMPLES, MEMORY_LIMIT // each))


@torch.no_grad()
def _collect(context: Context) -> DenseSide:
    side = DenseSide(*_divided(context))
    if not side.batches:
        return side
    context.dense.eval()
    state = _state(context.dense)
    found = layer_table.find(context.dense, context.matrices)
    by_node = {layer.nodes[0]: layer for layer in found.values() if len(layer.nodes) == 1}
    for node in context.dense.graph.nodes:
        if node.name in by_node and _plain(node, by_node[node.name], state):
            side.layers[node.name] = LayerTargets(by_node[node.name])
    rows = _rows(side)
    for_norms, total = set(side.norm_batches()), side.examples
    norms: dict[str, list[tuple[int, Moments]]] = {}
    with full_precision():
        for number, inputs in enumerate(side.batches):
            relevant = context.relevance(inputs) if context.relevance is not None else {}
            steps = Steps(context.dense, [inputs])
            generator = torch.Generator().manual_seed(number)
            while steps.at < len(steps.nodes) - 1:
                node = steps.nodes[steps.at]
                if number in for_norms and node.target is BATCH_NORM and node.args[3] is not None:
                    values = steps.before(node.name)[0][0]
                    norms.setdefault(node.name, []).append((values.numel() // values.shape[1], moments([values])))
                steps.step()
                if node.name in side.layers:
                    kept = side.layers[node.name]
                    limit = ceil(rows[node.name] * len(inputs[0]) / total)
                    _take(kept, steps.result(node), limit, generator, relevant.get(node.name))
                    kept.targets[-1] -= _constant(node, kept.layer, state)
    side.norms = {name: _together(parts) for name, parts in norms.items()}
    return side


def _rows(side: DenseSide) -> dict[str, int]:
    """Positions of each layer: as many as its columns ask for, within the memory for all of them."""
    shapes = {name: kept.layer.matrix.shape for name, kept in side.layers.items()}
    rows = {name: _wanted_rows(prod(shape[1:])) for name, shape in shapes.items()}
    share = min(1.0, TARGET_BYTES / max(1, sum(4 * rows[name] * shapes[name][0] for name in rows)))
    return {name: max(1, int(share * wanted)) for name, wanted in rows.items()}


def _wanted_rows(columns: int) -> int:
    return max(MIN_ROWS, ROWS_PER_COLUMN * (columns + 1))


def _together(parts: Sequence[tuple[int, Moments]]) -> Moments:
    """Moments of all batches from those of each (Chan et al. 1979): inputs of all norms at once would not fit into memory."""
    count = sum(n for n, _ in parts)
    mean = torch.stack([n * own[0] for n, own in parts]).sum(dim=0) / count
    square = torch.stack([n * (own[1] + (own[0] - mean).square()) for n, own in parts]).sum(dim=0)
    return mean, square / count


def _take(kept: LayerTargets, result: torch.Tensor, limit: int, generator: torch.Generator, allowed: torch.Tensor | None) -> None:
    """Keep a layer's outputs at random positions of a batch, in a random order."""
    rows = kept.layer.outputs_by_example(result)  # (batch, G, positions, out / G)
    rows = rows.transpose(0, 1).reshape(rows.shape[1], -1, rows.shape[3])
    choices = torch.arange(rows.shape[1]) if allowed is None else allowed.reshape(-1).nonzero().squeeze(1).cpu()
    choices = choices[torch.randperm(len(choices), generator=generator)[:limit]]
    choices = choices.to(result.device)
    kept.places.append(choices)
    kept.targets.append(rows.index_select(1, choices).float())


_ADDMM = torch.ops.aten.addmm.default


def _bias(node: fx.Node) -> Any:
    position = 0 if node.target is _ADDMM else 2
    return node.args[position] if len(node.args) > position and node.target not in _PRODUCTS else None


_PRODUCTS = (torch.ops.aten.matmul.default, torch.ops.aten.mm.default)


def _plain(node: fx.Node, layer: Layer, state: Mapping[str, torch.Tensor]) -> bool:
    """Is the layer's output the product and one stored constant an output, and nothing else?"""
    if node.target is _ADDMM and (node.kwargs or len(node.args) > 3):
        return False  # scaled
    bias = _bias(node)
    if bias is None:
        return True
    if not (isinstance(bias, fx.Node) and bias.op == "get_attr" and str(bias.target) in state):
        return False
    stored = state[str(bias.target)]
    return stored.numel() == 1 or (stored.numel() == layer.matrix.shape[0] == stored.shape[-1])


def _constant(node: fx.Node, layer: Layer, state: Mapping[str, torch.Tensor]) -> torch.Tensor | float:
    """(G, 1, out / G): what the layer adds by itself to every output."""
    bias = _bias(node)
    if bias is None:
        return 0.0
    stored = state[str(bias.target)].detach().float().reshape(-1).expand(layer.matrix.shape[0])
    return stored.reshape(layer.matrix.groups, 1, -1)


def clean_nodes(module: fx.GraphModule, dense: fx.GraphModule) -> set[str]:
    """Nodes of a candidate that compute what the dense model's nodes of the same name do."""
    state = _state(module)
    dense_state = _state(dense)
    known = {node.name: node for node in dense.graph.nodes}
    clean: set[str] = set()
    for node in module.graph.nodes:
        other = known.get(node.name)
        if other is None or other.op != node.op or (node.op != "placeholder" and other.target != node.target):
            continue
        if node.op == "get_attr":
            mine, theirs = state.get(str(node.target)), dense_state.get(str(node.target))
            same = mine is not None and theirs is not None and mine.shape == theirs.shape and torch.equal(mine, theirs)
        else:
            same = all(source.name in clean for source in node.all_input_nodes)
            same = same and _named(node.args) == _named(other.args) and _named(node.kwargs) == _named(other.kwargs)
        if same:
            clean.add(node.name)
    return clean


def _named(arguments: Any) -> Any:
    return fx.node.map_arg(arguments, lambda node: node.name)


def _state(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}


def per_batch(values: Sequence[torch.Tensor], flags: Sequence[bool], *, held_out: bool) -> list[torch.Tensor]:
    """The values of the batches that are held out, or of the others."""
    return [value for value, flag in zip(values, flags, strict=True) if flag == held_out]
