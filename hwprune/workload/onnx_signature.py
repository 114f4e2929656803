"""What an ONNX file takes and gives: its inputs, made-up ones, and which of its outputs stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from hwprune.errors import UsageError, WorkloadError
from hwprune.structure.onnx.flatten import captured
from hwprune.workload.npz_file import Declared


def batch_of(proto: onnx.ModelProto) -> int | None:
    """The batch that the file is fixed to; None where it is free, or inputs have different first sizes."""
    first = {one.sizes[0] for one in declared(proto) if one.sizes}
    return first.pop() if len(first) == 1 else None


def with_outputs(proto: onnx.ModelProto, text: str, path: Path) -> tuple[onnx.ModelProto, list[int]]:
    """(the model with the named outputs only, their places in the file); all of them where none is named.

    Raises:
        UsageError: there is no such output.
        WorkloadError: an output that stays is no tensor (the maps that scikit-learn's exporter writes, for instance).
    """
    names = [item.name for item in proto.graph.output]
    wanted = [word.strip() for word in text.split(",") if word.strip()] or names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UsageError(f"{path} has no output {', '.join(unknown)}; it has {', '.join(names)}")
    odd = [name for name in wanted if not proto.graph.output[names.index(name)].type.HasField("tensor_type")]
    if odd:
        rest = ",".join(name for name in wanted if name not in odd)
        raise WorkloadError(
            f"output {', '.join(odd)} of {path} is no tensor. Export it as one (skl2onnx: options={{'zipmap': False}})"
            + (f", or leave it out: output={rest}" if rest else "")
        )
    places = [names.index(name) for name in wanted]
    if wanted == names:
        return proto, places
    kept = onnx.ModelProto()
    kept.CopyFrom(proto)
    del kept.graph.output[:]
    kept.graph.output.extend(proto.graph.output[place] for place in places)
    return _without_dead_nodes(kept), places


def _without_dead_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without nodes whose results nobody reads, in place."""
    needed = {item.name for item in proto.graph.output}
    nodes = []
    for node in reversed(proto.graph.node):
        if any(name in needed for name in node.output):
            nodes.append(node)
            needed.update({*node.input, *captured(node)})
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])
    return proto


def sizes_of(text: str) -> list[list[int]]:
    """``1x3x224x224,1x10`` as numbers. Raises `UsageError`."""
    try:
        return [[int(size) for size in word.lower().split("x")] for word in text.split(",") if word]
    except ValueError:
        raise UsageError(f"shape must be sizes such as 1x3x224x224 (of several inputs joined by commas), got {text!r}") from None


def has_free(inputs: Sequence[Declared]) -> bool:
    return any(size is None for one in inputs for size in (one.sizes or ())[1:])


def ask_for_sizes(error: WorkloadError, inputs: Sequence[Declared]) -> str:
    shapes = ", ".join(
        f"{one.name} is {'x'.join('?' if size is None else str(size) for size in one.sizes)}" for one in inputs if one.sizes
    )
    return (
        f"without data, free sizes were made up as 16 ({shapes}), and with these the model can't be run. "
        f"Give real ones: --shape 1x3x224x224, or data: --data file.npz ({error})"
    )


def made_up(proto: onnx.ModelProto, sizes: Sequence[Sequence[int]] = ()) -> tuple[torch.Tensor, ...]:
    """Example inputs of the declared shapes, or of the given ones: a free first size is 1, any other 16; whole numbers are zeros.

    Raises:
        UsageError: the given sizes don't go with the declared ones.
    """
    wanted = declared(proto)
    if sizes and [len(one) for one in sizes] != [len(one.sizes or ()) for one in wanted]:
        ranks = ", ".join(f"{one.name}: {len(one.sizes or ())} sizes" for one in wanted)
        raise UsageError(
            f"shape gives sizes of {len(sizes)} inputs with {[len(one) for one in sizes]} sizes; the model takes {ranks}"
        )
    tensors = []
    generator = torch.Generator().manual_seed(0)
    for place, one in enumerate(wanted):
        usual = [size or (1 if position == 0 else 16) for position, size in enumerate(one.sizes or ())]
        given = list(sizes[place]) if sizes else usual
        wrong = [(g, d) for g, d in zip(given, one.sizes or (), strict=True) if d is not None and g != d]
        if wrong:
            raise UsageError(f"shape gives {one.name} a size of {wrong[0][0]} where the model has {wrong[0][1]}")
        real = one.dtype.is_floating_point
        tensors.append(torch.randn(given, generator=generator).to(one.dtype) if real else torch.zeros(given, dtype=one.dtype))
    return tuple(tensors)


def inputs_of(proto: onnx.ModelProto) -> list[str]:
    """Names of the inputs that are no weights."""
    return [item.name for item in proto.graph.input if item.name not in {t.name for t in proto.graph.initializer}]


def declared(proto: onnx.ModelProto) -> list[Declared]:
    """What the file says of its inputs that are no weights."""
    names = set(inputs_of(proto))
    found = []
    for item in proto.graph.input:
        if item.name in names:
            kind = item.type.tensor_type
            dtype = torch.from_numpy(np.zeros(0, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))).dtype
            sizes = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
            found.append(Declared(item.name, dtype, sizes if kind.HasField("shape") else None))
    return found
