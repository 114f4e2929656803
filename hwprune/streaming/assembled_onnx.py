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
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from hwprune.onnx_files.interface_names import BATCH, LENGTH
from hwprune.onnx_files.to_onnx import save_onnx
from hwprune.streaming.block_templates import BlockTemplate, MarkedGraph, NotAssembledError, Shapes, marked_model
from hwprune.streaming.blocks import entering
from hwprune.streaming.cached_onnx import PAST, PAST_LENGTH, PRESENT, CacheShape, cache_shape, check_cached_onnx, exported
from hwprune.streaming.folder import UNEVEN, LanguageFolder, bare
from hwprune.streaming.sublayers import MLP, names_of
from hwprune.streaming.uneven import known_lengths


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

    suffix = ".onnx"

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
        model, layers = marked_model(folder, [dense, *found.values()], lengths)
        shape = cache_shape(model)
        attending = [any(hasattr(part, "layer_idx") for part in layer.modules()) for layer in layers]
        if len(shape.heads) != 2 * sum(attending):
            raise NotAssembledError("keys and values are not kept by blocks that attend")
        self._graph = MarkedGraph(exported(model, shape), len(layers))
        self._templates: dict[Any, BlockTemplate] = {}
        for place, key in enumerate(found, start=1):
            number = 2 * sum(attending[:place]) if attending[place] else None
            self._templates[key] = self._graph.template(place, layers[place], number, shape)
        self._ends = self._graph.ends()

    def write(self, blocks: Sequence[Mapping[str, torch.Tensor]], path: Path) -> CacheShape:
        """Write the model with these blocks (parameter -> tensor); returns its cache.

        Raises:
            NotAssembledError: a block is of no kind that was told, or no block attends.
        """
        kinds = [self._template(block) for block in blocks]
        if not any(kind.past for kind in kinds):
            raise NotAssembledError("no block attends: lengths are read off keys and values")
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

    @staticmethod
    def check(path: Path, model: nn.Module, ids: torch.Tensor) -> None:
        """See `check_cached_onnx`."""
        check_cached_onnx(path, model, CacheShape.of_file(path), ids)

    def _template(self, block: Mapping[str, torch.Tensor]) -> BlockTemplate:
        key = self._key({name: tuple(x.shape) for name, x in block.items()})
        if key not in self._templates:
            raise NotAssembledError("a block of other sizes than those that were exported")
        return self._templates[key]

    def _key(self, shapes: Shapes) -> Any:
        """What blocks of one kind have in common: all but the number of neurons."""
        of_mlp = f"{self._mlp}."
        return tuple(sorted((name, () if name.startswith(of_mlp) else tuple(shape)) for name, shape in shapes.items()))


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


def _interface(shape: CacheShape, graph: MarkedGraph) -> tuple[list[Any], list[Any]]:
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
