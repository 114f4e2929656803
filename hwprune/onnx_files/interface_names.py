"""Names of an exported file's outputs and free dims that a person can use.

The exporter calls an output by the operator that made it (``linear_13``) and a free dim by a number (``s72``). Code that runs the
file wants ``logits`` and ``batch``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx
from torch import fx, nn
from torch.utils import _pytree

from hwprune.onnx_files.own_names import graphs, rename

BATCH, LENGTH = "batch", "sequence"
_SYMBOL = re.compile(r"\bs\d+\b")


def of_outputs(module: fx.GraphModule) -> list[str]:
    """Names of the tensors that a model returns, in order: a mapping's keys, else ``output`` or ``output_0``, ``output_1``."""
    packing = getattr(module.graph._codegen, "pytree_info", None)
    if packing is None or packing.out_spec is None:
        return []
    count = packing.out_spec.num_leaves
    whole = _pytree.tree_unflatten(list(range(count)), packing.out_spec)
    names: dict[int, str] = {}
    if isinstance(whole, dict):
        for key, part in whole.items():
            leaves = _pytree.tree_leaves(part)
            names |= {leaf: str(key) if len(leaves) == 1 else f"{key}_{place}" for place, leaf in enumerate(leaves)}
    return [names.get(place, "output" if count == 1 else f"output_{place}") for place in range(count)]


def give(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Rename the outputs of an exported file, and the free dims of its inputs and of all that follows from them."""
    _outputs(model, of_outputs(module) if isinstance(module, fx.GraphModule) else [])
    _free_dims(model)
    return model


def _outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    graph = model.graph
    if len(names) != len(graph.output) or len({item.name for item in graph.output}) != len(names):
        return
    given = {item.name for item in (*graph.input, *graph.initializer)}
    if any(item.name in given for item in graph.output):  # an input, or a weight, that is handed on
        return
    there = given | {name for inner in graphs(graph) for node in inner.node for name in (*node.input, *node.output)}
    new = {item.name: name for item, name in zip(graph.output, names, strict=True) if item.name != name}
    for name in set(new.values()) & (there - set(new)):  # a result in the middle is called so: it gets another name
        new[name] = next(free for number in range(1, len(there) + 2) if (free := f"{name}_{number}") not in there)
        there.add(new[name])
    if set(new.values()) & given:
        return
    for inner in graphs(graph):
        rename(inner, new)


def _free_dims(model: onnx.ModelProto) -> None:
    named: dict[str, str] = {}
    for place, name in enumerate((BATCH, LENGTH)):
        for item in model.graph.input:
            dims = item.type.tensor_type.shape.dim
            if len(dims) > place and _SYMBOL.fullmatch(dims[place].dim_param):
                taken = sum(known.startswith(name) for known in named.values()) if place else 0
                named.setdefault(dims[place].dim_param, name if not taken else f"{name}_{taken + 1}")
    for inner in graphs(model.graph):
        for item in (*inner.input, *inner.output, *inner.value_info):
            for dim in item.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = _SYMBOL.sub(lambda found: named.get(found[0], found[0]), dim.dim_param)
