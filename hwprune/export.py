"""Candidate -> files: ONNX, .pt2, safetensors, recipe. Nothing is pickled."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hwprune import onnx_tidy
from hwprune.errors import CandidateFailure, UsageError
from hwprune.files import dump_json, read_json_table, sha256, write_atomic
from hwprune.recipe import Recipe
from hwprune.structure.opaque import opaque_model
from hwprune.structure.tracing import free_batch

OPSET = 20
RECORDED_OPSET = 17
"""Of the exporter that records one run; it knows no newer ones."""
INLINE_LIMIT = 1_500_000_000
"""Bytes of weights above which they go into a file beside the model: a protobuf holds 2 GB at most."""


def to_onnx(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], path: Path) -> Path:
    """Write ``module`` as ONNX with a free batch dimension, where the model allows one.

    Raises:
        CandidateFailure: the exporter refuses; the reason is its first line.
    """
    return save_onnx(onnx_tidy.fold(onnx_tidy.prepare(exported(module, example_inputs))), path)


def _trace_inputs(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Inputs and dynamic shapes: the batch stays free unless the model was captured with a fixed one."""
    if isinstance(module, torch.fx.GraphModule) and not module.meta.get("free_batch", True):
        return tuple(example_inputs), None
    return free_batch(module, example_inputs)


def exported(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """The graph as the exporter makes it, not optimised: parameters keep their names. Raises `CandidateFailure`."""
    inputs, shapes = _trace_inputs(module, example_inputs)
    module.eval()
    if (model := opaque_model(module)) is not None:
        return _recorded(model, inputs)
    try:
        with onnx_tidy.quiet():
            program = torch.onnx.export(
                lowered(module), inputs, dynamo=True, verbose=False, opset_version=OPSET, dynamic_shapes=shapes, optimize=False
            )
            assert program is not None  # None only for the deprecated exporter
            return program.model_proto
    except Exception as error:  # the exporter raises what torch.export and onnxscript raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise CandidateFailure("export", f"{type(error).__name__}: {first}") from error


def _recorded(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """What an untraceable model does for these inputs, whatever it would do for others; its outputs are compared on real data."""
    names = [f"input_{position}" for position in range(len(inputs))]
    axes = {name: {0: "batch"} for name, x in zip(names, inputs, strict=True) if x.ndim}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with onnx_tidy.quiet():
                torch.onnx.export(
                    module, inputs, path, dynamo=False, opset_version=RECORDED_OPSET, input_names=names, dynamic_axes=axes,
                    do_constant_folding=False,
                )  # fmt: skip
        except Exception as error:  # the exporter raises its own types
            first = (str(error).strip().splitlines() or [""])[0]
            raise CandidateFailure("export", f"{type(error).__name__}: {first}") from error
        return onnx.load(str(path))


def save_onnx(proto: onnx.ModelProto, path: Path) -> Path:
    """Write it whole or not at all; large weights go into a file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if proto.ByteSize() > INLINE_LIMIT:
        onnx.save(proto, str(path), save_as_external_data=True, location=path.name + ".data")
    else:
        write_atomic(path, proto.SerializeToString())
    return path


def convert(path: Path, precision: str) -> None:
    """Rewrite an ONNX file in ``fp16``; see `converted`. Raises `CandidateFailure`."""
    save_onnx(converted(onnx.load(str(path)), precision), path)


def converted(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model in ``fp16``; inputs and outputs stay in 32 bits, as do operators that need the range.

    Strongly typed runtimes (TensorRT) take the precision from the file. Uses ONNX Runtime's own converter.

    Raises:
        CandidateFailure: the model can't be converted.
    """
    try:
        if precision == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            with onnx_tidy.quiet():
                model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=False)
            _sort(model.graph)  # the converter appends its casts at the end
        elif precision != "fp32":
            raise ValueError(f"there is no converter to {precision}; export such a model from PyTorch in it")
    except Exception as error:  # the converter raises what it meets
        raise CandidateFailure("export", f"conversion to {precision}: {error}") from error
    return model


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in topological order, otherwise as they stand."""
    made = {item.name for item in (*graph.input, *graph.initializer)} | {""}
    waiting, done = list(graph.node), []
    outputs = {name for node in waiting for name in node.output}
    while waiting:
        ready = [n for n in waiting if all(name in made or name not in outputs for name in n.input)]
        if not ready:
            raise ValueError("the converted graph has a cycle")
        for node in ready:
            made.update(node.output)
        done += ready
        taken = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in taken]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in done]
    del graph.node[:]
    graph.node.extend(copies)


def lowered(module: torch.nn.Module) -> torch.nn.Module:
    """The same computation without what the exporter trips over.

    Fused attention over other than 4 dims has no translation, and a reshape of its result is translated as a view that only the
    fused kernel's strides allow.
    """
    if not isinstance(module, torch.fx.GraphModule):
        return module
    attention = torch.ops.aten.scaled_dot_product_attention.default
    graph = torch.fx.Graph()
    graph._codegen = module.graph._codegen
    new: dict[torch.fx.Node, torch.fx.Node] = {}
    derived: set[torch.fx.Node] = set()
    for old in module.graph.nodes:
        first = old.args[0] if old.args else None
        if old.target is attention and _rank(first) not in (4, None) and _plain(old):
            new[old] = _attention(graph, old, new)
            continue
        if old.target is attention or (isinstance(first, torch.fx.Node) and first in derived and old.target in _REORDERING):
            derived.add(old)
        new[old] = graph.node_copy(old, lambda node: new[node])
        if old.target is torch.ops.aten.reshape.default and first in derived:
            with graph.inserting_before(new[old]):
                whole = graph.call_function(
                    torch.ops.aten.clone.default, (new[old].args[0],), {"memory_format": torch.contiguous_format}
                )
            new[old].update_arg(0, whole)
    return torch.fx.GraphModule(module, graph)


_REORDERING = (torch.ops.aten.transpose.int, torch.ops.aten.permute.default)


def _rank(node: Any) -> int | None:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, torch.Tensor) else node.meta.get("rank")


def _plain(node: torch.fx.Node) -> bool:
    """Attention that is neither causal nor grouped, of a known scale."""
    first = node.args[0]
    known = "scale" in node.kwargs or (isinstance(first, torch.fx.Node) and "val" in first.meta)
    return known and len(node.args) < 6 and not {"is_causal", "enable_gqa"}.intersection(node.kwargs)


def _attention(graph: torch.fx.Graph, old: torch.fx.Node, new: dict[torch.fx.Node, torch.fx.Node]) -> torch.fx.Node:
    """softmax(q k^T scale + mask) v in single operators."""
    aten = torch.ops.aten
    query, key, value = (new[one] for one in old.args[:3])  # type: ignore[index]  # the operator's inputs are nodes
    mask = old.args[3] if len(old.args) > 3 else old.kwargs.get("attn_mask")
    scale = old.kwargs.get("scale") or float(old.args[0].meta["val"].shape[-1]) ** -0.5  # type: ignore[union-attr]
    turned = graph.call_function(aten.transpose.int, (key, -2, -1))
    scores = graph.call_function(aten.matmul.default, (graph.call_function(aten.mul.Tensor, (query, scale)), turned))
    if isinstance(mask, torch.fx.Node):
        if (mask.meta["val"].dtype if "val" in mask.meta else mask.meta["dtype"]) == torch.bool:
            scores = graph.call_function(aten.where.ScalarOther, (new[mask], scores, float("-inf")))
        else:
            scores = graph.call_function(aten.add.Tensor, (scores, new[mask]))
    weights = graph.call_function(aten.softmax.int, (scores, -1))
    return graph.call_function(aten.matmul.default, (weights, value))


def to_pt2(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], path: Path) -> Path:
    """Write ``module`` as an exported program, without sample inputs (torch would pickle them)."""
    inputs, shapes = _trace_inputs(module, example_inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with onnx_tidy.quiet():
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
        program._example_inputs = None
        torch.export.save(program, path)
    return path


def to_safetensors(module: torch.nn.Module, path: Path) -> Path:
    """Write the state dict; a tensor known by several names is stored under each."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    write_atomic(path, save(state))
    return path


def write_recipe(
    recipe: Recipe,
    fingerprint: str,
    keeps: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    folder: Path,
    orders: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """recipe.json with the kept indices, and keep.safetensors with the masks as packed bits if there are any."""
    from hwprune.version import VERSION

    data: dict[str, Any] = {
        **recipe.to_json(),
        "digest": recipe.digest,
        "hwprune": VERSION,
        "model_fingerprint": fingerprint,
        "kept": {name: keep.nonzero().squeeze(1).tolist() for name, keep in keeps.items()},
        "sizes": {name: len(keep) for name, keep in keeps.items()},
    }
    if orders:
        data["order"] = {name: order.tolist() for name, order in orders.items()}
    if masks:
        packed = {}
        for name, mask in masks.items():
            packed[name] = torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))
            packed[f"{name}.shape"] = torch.tensor(mask.shape)
        write_atomic(folder / "keep.safetensors", save(packed))
        data["masks"] = {"file": "keep.safetensors", "sha256": sha256(folder / "keep.safetensors")}
    path = folder / "recipe.json"
    write_atomic(path, dump_json(data))
    return path


@dataclass(frozen=True, slots=True, eq=False)
class StoredRecipe:
    """A recipe with what was decided when it was applied.

    Attributes:
        fingerprint: of the model that it was made for.
        keeps: axis -> keep mask. masks: parameter -> keep mask. orders: axis -> order of its kept indices.
    """

    recipe: Recipe
    fingerprint: str
    keeps: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor]
    orders: dict[str, torch.Tensor]


def read_recipe(path: Path) -> StoredRecipe:
    """A recipe.json and the masks beside it.

    Raises:
        UsageError: the file or the masks beside it have faults.
    """
    table = read_json_table(path)
    recipe = Recipe.from_table(table)
    for name in ("digest", "hwprune"):
        table.text(name, "")
    fingerprint = table.text("model_fingerprint", "")
    kept, sizes, masks = table.free("kept"), table.free("sizes"), table.free("masks")
    keeps: dict[str, torch.Tensor] = {}
    for name, indices in kept.items():
        size: Any = sizes.get(name)
        valid = isinstance(indices, list) and type(size) is int and 0 < size < 10_000_000
        if not valid or not all(type(i) is int and 0 <= i < size for i in indices):
            table.fault(f"kept.{name}", "must be a list of indices below the axis's size")
            continue
        keeps[name] = torch.zeros(size, dtype=torch.bool)
        keeps[name][indices] = True
    orders: dict[str, torch.Tensor] = {}
    for name, order in table.free("order").items():
        count = int(keeps[name].sum()) if name in keeps else sizes.get(name, len(order) if isinstance(order, list) else 0)
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(map(str, range(count))):
            table.fault(f"order.{name}", "must hold every kept index of the axis once")
            continue
        orders[name] = torch.tensor(order, dtype=torch.int64)
    table.finish()
    return StoredRecipe(recipe, fingerprint, keeps, _read_masks(path, masks) if masks else {}, orders)


def _read_masks(path: Path, entry: dict[str, Any]) -> dict[str, torch.Tensor]:
    file = path.parent / "keep.safetensors"
    if entry.get("file") != file.name:
        raise UsageError(f"{path}: masks.file must be 'keep.safetensors', got {entry.get('file')!r}")
    if not file.is_file() or sha256(file) != entry.get("sha256"):
        raise UsageError(f"{file} is missing or is not the one that {path.name} was written with (SHA-256 differs)")
    try:
        packed = load(file.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} can't be read: {error}") from error
    masks = {}
    for name, bits in packed.items():
        if f"{name}.shape" in packed:
            shape: list[int] = packed[f"{name}.shape"].tolist()
            flat = np.unpackbits(bits.numpy(), count=int(np.prod(shape)))
            masks[name] = torch.from_numpy(flat.astype(bool)).reshape(shape)
    return masks
