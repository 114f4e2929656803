"""ONNX files with a cache put together from blocks: the exporter runs once for each kind of block, and not for each model.

Exporting 30 blocks takes minutes, whatever their size, and nearly all of it says the same 30 times. Here a model with one block
of each kind is exported. Each block's nodes are found between two marks (a product with a number of its own, which is taken out
again), and copied with other weights as often as they are wanted. MLPs of one kind may have any number of neurons.

What the exporter makes of a class may not come apart so (weights folded into constants, as in Gemma). That is found out, and
`cached_onnx` writes such models. Whoever keeps a file checks it with `cached_onnx.check_cached_onnx`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from hwprune.errors import UsageError
from hwprune.onnx_files.interface_names import BATCH, LENGTH
from hwprune.onnx_files.to_onnx import save_onnx
from hwprune.streaming.blocks import entering
from hwprune.streaming.cached_onnx import PAST, PAST_LENGTH, PRESENT, CacheShape, cache_shape, exported
from hwprune.streaming.config_sizes import with_depth
from hwprune.streaming.folder import UNEVEN, LanguageFolder, bare, fill, skeleton
from hwprune.streaming.sublayers import MLP, names_of
from hwprune.streaming.uneven import Uneven, known_lengths

Shapes = Mapping[str, tuple[int, ...]]
MARK = "hwprune_mark"
FIRST_MARK = 1.7310586
"""A number that no model has by chance: the exporter makes one constant of equal ones, and folds products with 1."""


class NotAssembledError(UsageError):
    """What the exporter made of this class does not come apart at its blocks."""


@dataclass(frozen=True, slots=True)
class _Template:
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


class Assembler:
    """Writes models of one class whose blocks are of known kinds.

    Args:
        folder: the dense model; what is not in blocks is taken from it.
        kinds: a block's shapes (parameter -> shape) for each kind. Branches that are gone have none.
        lengths: see `Uneven`.

    Raises:
        NotAssembledError: the class does not come apart.
        UsageError: PyTorch can't export it.
    """

    def __init__(self, folder: LanguageFolder, kinds: Iterable[Shapes], lengths: Mapping[str, int]) -> None:
        if len(set(getattr(folder.config, "layer_types", None) or [])) > 1:
            raise NotAssembledError("blocks look back differently far")
        config = copy.deepcopy(folder.config)
        if folder.uneven:
            delattr(config, UNEVEN)
        first = next(iter(bare(folder.kind, config).get_submodule(folder.blocks).children()))
        self._mlp = names_of(first)[MLP]
        dense = {name: tuple(x.shape) for name, x in first.named_parameters()}
        found = {self._key(shapes): shapes for shapes in [dense, *kinds]}
        model, layers = _model(folder, [dense, *found.values()], lengths)
        shape = cache_shape(model)
        attending = [any(hasattr(part, "layer_idx") for part in layer.modules()) for layer in layers]
        if len(shape.heads) != 2 * sum(attending):
            raise NotAssembledError("keys and values are not kept by blocks that attend")
        self._graph = _Graph(exported(model, shape), len(layers))
        self._templates: dict[Any, _Template] = {}
        for place, key in enumerate(found, start=1):
            number = 2 * sum(attending[:place]) if attending[place] else None
            self._templates[key] = self._graph.template(place, layers[place], number, shape)
        self._ends = self._graph.ends()

    def write(self, blocks: Sequence[Mapping[str, torch.Tensor]], path: Path) -> CacheShape:
        """Write the model with these blocks (parameter -> tensor); returns its cache.

        Raises:
            NotAssembledError: a block is of no kind that was told.
        """
        kinds = [self._template(block) for block in blocks]
        graph, names = self._graph, _Names()
        nodes, weights = list(self._ends.before), []
        stream = self._ends.enters
        past: list[str] = []
        heads: list[int] = []
        sizes: list[int] = []
        for place, (kind, block) in enumerate(zip(kinds, blocks, strict=True)):
            renamed = {kind.enters: stream}
            for offset, (old, new) in enumerate(zip(kind.past, kind.present, strict=True)):
                told = f"{(len(past) - offset % 2) // 2}.{'value' if offset % 2 else 'key'}"
                renamed |= {old: f"{PAST}.{told}", new: f"{PRESENT}.{told}"}
                past.append(renamed[old])
            heads += kind.heads
            sizes += kind.sizes
            for name, (parameter, turned) in kind.weights.items():
                renamed[name] = f"block.{place}.{parameter}" + (".transposed" if turned else "")
                array = block[parameter].detach().float()
                weights.append(_tensor((array.T if turned else array).contiguous().numpy(), renamed[name]))
            made = {name for node in kind.nodes for name in node.output}
            nodes += [names.copied(node, place, made, renamed) for node in kind.nodes]
            stream = renamed.get(kind.leaves) or names.told(kind.leaves, place)
        nodes += [
            names.copied(node, len(blocks), {*self._ends.made_after}, {self._ends.leaves: stream}) for node in self._ends.after
        ]
        shape = CacheShape(tuple(heads), tuple(sizes))
        used = {name for node in nodes for name in node.input}
        kept = [item for name, item in graph.initializers.items() if name in used]
        inputs, outputs = _interface(shape, graph)
        proto = onnx.ModelProto()
        proto.CopyFrom(graph.bare)
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend([*kept, *weights])
        proto.graph.input.extend(inputs)
        proto.graph.output.extend(outputs)
        save_onnx(proto, path)
        return shape

    def _template(self, block: Mapping[str, torch.Tensor]) -> _Template:
        key = self._key({name: tuple(x.shape) for name, x in block.items()})
        if key not in self._templates:
            raise NotAssembledError("a block of other sizes than those that were exported")
        return self._templates[key]

    def _key(self, shapes: Shapes) -> Any:
        """What blocks of one kind have in common: all but the number of neurons."""
        of_mlp = f"{self._mlp}."
        return tuple(sorted((name, () if name.startswith(of_mlp) else tuple(shape)) for name, shape in shapes.items()))


@dataclass(frozen=True, slots=True)
class _Ends:
    """What is before the first block and behind the last one."""

    before: tuple[onnx.NodeProto, ...]
    enters: str
    after: tuple[onnx.NodeProto, ...]
    made_after: frozenset[str]
    leaves: str


class _Graph:
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

    def template(self, place: int, layer: nn.Module, number: int | None, shape: CacheShape) -> _Template:
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
        return _Template(tuple(self.nodes[i] for i in inner), enters, leaves, tuple(past), tuple(present), weights, *sizes)

    def ends(self) -> _Ends:
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
        return _Ends(first, enters, kept, made, leaves)

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


def blocks_of(folder: LanguageFolder) -> list[dict[str, torch.Tensor]]:
    """Each block's tensors, without those of branches that zeros stand for."""
    found = []
    for index, layer in enumerate(folder.skeleton.get_submodule(folder.blocks).children()):
        start = f"{folder.blocks}.{index}."
        tensors = {name.removeprefix(start): x for name, x in folder.load(folder.block_tensors(index)).items()}
        for name, _ in layer.named_children():
            matrices = [x for key, x in tensors.items() if key.startswith(f"{name}.") and x.ndim >= 2]
            if matrices and not any(bool(x.any()) for x in matrices):
                tensors = {key: x for key, x in tensors.items() if not key.startswith(f"{name}.")}
        found.append(tensors)
    return found


def write_assembled(folder: LanguageFolder, path: Path) -> CacheShape:
    """A folder's model as an ONNX file with a cache; returns the cache.

    Raises:
        NotAssembledError: the class does not come apart.
        UsageError: PyTorch can't export it.
    """
    ids = torch.zeros(1, 3, dtype=torch.int64)
    hidden, given = entering(folder.ends(), folder.blocks, ids)
    lengths = known_lengths(folder, given, hidden)
    if not lengths:
        raise NotAssembledError("attention and MLP are not one module each")
    blocks = blocks_of(folder)
    kinds = [{name: tuple(x.shape) for name, x in block.items()} for block in blocks]
    return Assembler(folder, kinds, lengths).write(blocks, path)


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node that takes other values."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    taken = [names.get(name, name) for name in node.input]
    del copied.input[:]
    copied.input.extend(taken)
    return copied


class _Names:
    """Copies of nodes with names of their own."""

    def told(self, name: str, place: int) -> str:
        """A value's name in the block at this place."""
        return f"{place}/{name}"

    def copied(self, node: onnx.NodeProto, place: int, made: set[str], renamed: Mapping[str, str]) -> onnx.NodeProto:
        """A node of a block; values that the block makes itself get the block's names."""
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.name = self.told(node.name, place)

        def new(name: str) -> str:
            return renamed.get(name) or (self.told(name, place) if name in made else name)

        for field in (copied.input, copied.output):
            names = [new(name) if name else "" for name in field]
            del field[:]
            field.extend(names)
        return copied


def _model(folder: LanguageFolder, kinds: Sequence[Shapes], lengths: Mapping[str, int]) -> tuple[nn.Module, list[nn.Module]]:
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


def _interface(shape: CacheShape, graph: _Graph) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs, with the names that `cached_onnx` gives."""
    inputs, outputs = [graph.types["input_ids"]], [graph.types["logits"]]
    for number, (heads, size) in enumerate(zip(shape.heads, shape.sizes, strict=True)):
        name = f"{number // 2}.{'value' if number % 2 else 'key'}"
        for start, length, into in ((PAST, PAST_LENGTH, inputs), (PRESENT, f"{PAST_LENGTH} + {LENGTH}", outputs)):
            dims: list[str | int | None] = [BATCH, heads, length, size]
            into.append(helper.make_tensor_value_info(f"{start}.{name}", onnx.TensorProto.FLOAT, dims))
    return inputs, outputs


def _tensor(array: np.ndarray[Any, Any], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)
