"""The kinds of blocks of a language model as parts of an ONNX graph: exported once, found between marks.

A mark is a product with a number of its own behind each block. It tells where a block ends, and is left out of copies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from hwprune.errors import UsageError
from hwprune.streaming.cached_onnx import PAST, PRESENT, CacheShape
from hwprune.streaming.config_sizes import with_depth
from hwprune.streaming.folder import UNEVEN, LanguageFolder, fill, skeleton
from hwprune.streaming.uneven import Uneven

Shapes = Mapping[str, tuple[int, ...]]
MARK = "hwprune_mark"
FIRST_MARK = 1.7310586
"""A number that no model has by chance: the exporter makes one constant of equal ones, and folds products with 1."""


class NotAssembledError(UsageError):
    """What the exporter made of this class does not come apart at its blocks."""


@dataclass(frozen=True, slots=True)
class BlockTemplate:
    """One kind of block.

    Attributes:
        nodes: in order.
        enters, leaves: names of the stream's values.
        past, present: names of keys and values in turn, before and after.
        weights: initializer -> (parameter, is it transposed?).
        heads, sizes: of keys and values in turn.
    """

    nodes: tuple[onnx.NodeProto, ...]
    enters: str
    leaves: str
    past: tuple[str, ...]
    present: tuple[str, ...]
    weights: Mapping[str, tuple[str, bool]]
    heads: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelEnds:
    """What is before the first block and behind the last one."""

    before: tuple[onnx.NodeProto, ...]
    enters: str
    after: tuple[onnx.NodeProto, ...]
    made_after: frozenset[str]
    leaves: str


class MarkedGraph:
    """An exported model with marks between its blocks.

    Args:
        count: number of blocks.
    """

    def __init__(self, proto: onnx.ModelProto, count: int) -> None:
        graph = proto.graph
        self.initializers = {item.name: item for item in graph.initializer}
        self.nodes = list(graph.node)
        self.outputs = [item.name for item in graph.output]
        self.types = {item.name: item for item in (*graph.input, *graph.output)}
        self.bare = onnx.ModelProto()
        self.bare.CopyFrom(proto)
        for field in (self.bare.graph.node, self.bare.graph.initializer, self.bare.graph.input, self.bare.graph.output):
            del field[:]
        del self.bare.graph.value_info[:]
        self._marks = [self._mark(number) for number in range(count + 1)]
        self._maker = {name: place for place, node in enumerate(self.nodes) for name in node.output}
        self.shared: set[int] = set()

    def _mark(self, number: int) -> tuple[str, str]:
        """(value before, value behind) the product with this mark."""
        for node in self.nodes:
            if node.op_type == "Mul" and any(name.endswith(f"{MARK}_{number}") for name in node.input):
                before = next(name for name in node.input if not name.endswith(f"{MARK}_{number}"))
                return before, node.output[0]
        raise NotAssembledError("the exporter has folded what tells blocks apart")

    def template(self, place: int, layer: nn.Module, number: int | None, shape: CacheShape) -> BlockTemplate:
        """The block at this place.

        Args:
            number: of its keys among keys and values in turn; None: it does not attend.
        """
        enters, leaves = self._marks[place][1], self._marks[place + 1][0]
        past, present = [], []
        if number is not None:
            told = [f"{number // 2}.{kind}" for kind in ("key", "value")]
            past, present = [f"{PAST}.{name}" for name in told], [f"{PRESENT}.{name}" for name in told]
        weights = self._weights(layer)
        after = self._after({enters, *past, *weights})
        needed = self._before([leaves, *present], {enters})
        inner = sorted(needed & after)
        self.shared |= needed - after
        missing = {name for name, _ in layer.named_parameters() if not name.startswith(MARK)} - {p for p, _ in weights.values()}
        if missing:
            raise NotAssembledError(f"the exporter has folded {min(missing)} into something else")
        sizes = (shape.heads[number : number + 2], shape.sizes[number : number + 2]) if number is not None else ((), ())
        return BlockTemplate(tuple(self.nodes[i] for i in inner), enters, leaves, tuple(past), tuple(present), weights, *sizes)

    def ends(self) -> ModelEnds:
        """What is in no block; to be asked for after all templates."""
        enters, leaves = self._marks[0][0], self._marks[-1][1]
        after = sorted(self._before(["logits"], {leaves}))
        behind = self._after({leaves})
        before = self._before([enters], set()) | self.shared | {place for place in after if place not in behind}
        streams = self._after({behind for _, behind in self._marks})
        if before & streams:  # a value of one block that others use
            raise NotAssembledError("blocks use what other blocks have made of the text")
        renamed = {name: f"{PAST}.0.key" for name in self.types if name.startswith(PAST)}
        if any(self.nodes[i].op_type != "Shape" for i in before if not renamed.keys().isdisjoint(self.nodes[i].input)):
            raise NotAssembledError("blocks use what others keep of the text")
        kept = tuple(self.nodes[i] for i in after if i in behind)
        made = frozenset(name for node in kept for name in node.output) - {"logits"}
        # Lengths are read off the keys and values of any block; all have the same, and the model may have none of that kind.
        first = tuple(_renamed(self.nodes[i], renamed) for i in sorted(before))
        return ModelEnds(first, enters, kept, made, leaves)

    def _weights(self, layer: nn.Module) -> dict[str, tuple[str, bool]]:
        """The initializers that are parameters of a block, by their numbers, which are random."""
        wanted = {name: x.detach().numpy() for name, x in layer.named_parameters() if not name.startswith(MARK)}
        found: dict[str, tuple[str, bool]] = {}
        for name, item in self.initializers.items():
            if item.data_type != onnx.TensorProto.FLOAT:
                continue
            dims = tuple(item.dims)
            for parameter, values in wanted.items():
                if dims not in (values.shape, values.shape[::-1]) or not dims:
                    continue
                array = numpy_helper.to_array(item)
                if array.shape == values.shape and np.array_equal(array, values):
                    found[name] = (parameter, False)
                elif array.ndim == 2 and array.shape == values.T.shape and np.array_equal(array, values.T):
                    found[name] = (parameter, True)
        return found

    def _after(self, names: set[str]) -> set[int]:
        """Nodes that depend on any of these values."""
        reached, found = set(names), set()
        for place, node in enumerate(self.nodes):
            if not reached.isdisjoint(node.input):
                found.add(place)
                reached.update(node.output)
        return found

    def _before(self, names: Iterable[str], stop: set[str]) -> set[int]:
        """Nodes that these values depend on, up to others."""
        waiting, found = [name for name in names if name not in stop], set[int]()
        while waiting:
            place = self._maker.get(waiting.pop())
            if place is None or place in found:
                continue
            found.add(place)
            waiting += [name for name in self.nodes[place].input if name and name not in stop]
        return found


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node that takes other values."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    taken = [names.get(name, name) for name in node.input]
    del copied.input[:]
    copied.input.extend(taken)
    return copied


def marked_model(
    folder: LanguageFolder, kinds: Sequence[Shapes], lengths: Mapping[str, int]
) -> tuple[nn.Module, list[nn.Module]]:
    """A model with one block of each kind, random weights in them, and marks around them; and its blocks."""
    config = copy.deepcopy(folder.config)
    if hasattr(config, UNEVEN):
        delattr(config, UNEVEN)
    config = with_depth(config, [0] * len(kinds))
    config = Uneven(folder.kind, folder.blocks, kinds, lengths).config(config)
    model = skeleton(folder.kind, config)
    fill(model, {name: x.float() for name, x in folder.load(folder.other_tensors()).items()})
    if getattr(config, "tie_word_embeddings", False):
        model.tie_weights()  # type: ignore[operator]
    layers = list(model.get_submodule(folder.blocks).children())
    draw = torch.Generator().manual_seed(0)
    for place, layer in enumerate(layers):
        numbers = {name: torch.randn(x.shape, generator=draw) for name, x in layer.named_parameters()}
        fill(layer, numbers)
        marks = [place, place + 1] if place == 0 else [place + 1]
        for mark in marks:
            layer.register_parameter(f"{MARK}_{mark}", nn.Parameter(torch.tensor(FIRST_MARK + mark / 64), requires_grad=False))
        layer.register_forward_hook(_marking(place + 1))
    layers[0].register_forward_pre_hook(_entering, with_kwargs=True)
    return model.eval(), layers


def _marking(number: int) -> Any:
    def mark(layer: nn.Module, _given: Any, made: Any) -> Any:
        scale = getattr(layer, f"{MARK}_{number}")
        return (made[0] * scale, *made[1:]) if isinstance(made, tuple) else made * scale

    return mark


def _entering(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    scale = getattr(layer, f"{MARK}_0")
    if given:
        return (given[0] * scale, *given[1:]), named
    return given, named | {"hidden_states": named["hidden_states"] * scale}
