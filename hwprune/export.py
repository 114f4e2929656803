"""Candidate -> files: ONNX, .pt2, safetensors, recipe. Nothing is pickled."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import fx

from hwprune.errors import CandidateFailure, UsageError
from hwprune.files import dump_json, read_json_table, sha256, write_atomic
from hwprune.recipe import Recipe
from hwprune.structure.tracing import free_batch

if TYPE_CHECKING:
    from hwprune.pruning import Candidate

OPSET = 20
INLINE_LIMIT = 1_500_000_000
"""Bytes of weights above which they go into a file beside the model: a protobuf holds 2 GB at most."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about packages that hwprune does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def to_onnx(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], path: Path) -> Path:
    """Write ``module`` as ONNX with a free batch dimension, where the model allows one.

    Raises:
        CandidateFailure: the exporter refuses; the reason is its first line.
    """
    return _save(_optimised(_exported(module, example_inputs)), path)


class Template:
    """The dense model's ONNX graph, from which most candidates are made without exporting again.

    A candidate whose traced program differs from the dense one only in its tensors (every CNN without baked-in
    sizes) has the same ONNX graph with other initializers. Whether that holds is checked once, on a cut of
    every axis at a time, against a real export; where it does not, each candidate is exported.
    """

    def __init__(self, dense: fx.GraphModule, example_inputs: Sequence[torch.Tensor], probe: fx.GraphModule | None) -> None:
        """``probe``: the model cut in every axis that may be, or None if there is none."""
        self._dense = dense
        self._inputs = tuple(example_inputs)
        self._proto = _exported(dense, self._inputs)
        self._names = self._replaceable()
        complete = set(_tensors(dense)) <= set(self._names)
        self.usable = complete and (probe is None or self._reproduces(probe))

    def write(self, module: fx.GraphModule, path: Path) -> Path:
        """Write a candidate of the dense model. Raises `CandidateFailure`."""
        if self.usable and _same_program(module, self._dense):
            return _save(_optimised(self._filled(module)), path)
        return to_onnx(module, self._inputs, path)

    def _replaceable(self) -> dict[str, str]:
        """Tensor name -> initializer name, where the initializer holds the dense tensor unchanged."""
        stored = {item.name: item for item in self._proto.graph.initializer}
        tensors = _tensors(self._dense)
        first: dict[int, str] = {}
        found = {}
        for name, tensor in tensors.items():
            source = first.setdefault(id(tensor), name)  # the exporter keeps one of several tied names
            chosen = next((n for n in (name, source) if n in stored), None)
            if chosen is None or tensor.dtype == torch.bfloat16:  # numpy has no bfloat16
                continue
            if np.array_equal(onnx.numpy_helper.to_array(stored[chosen]), tensor.detach().cpu().numpy()):
                found[name] = chosen
        return found

    def _filled(self, module: fx.GraphModule) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        stored = {item.name: item for item in proto.graph.initializer}
        for name, tensor in _tensors(module).items():
            if name in self._names:
                target = self._names[name]
                stored[target].CopyFrom(onnx.numpy_helper.from_array(tensor.detach().cpu().contiguous().numpy(), target))
        del proto.graph.value_info[:]  # sizes of the dense model
        return onnx.shape_inference.infer_shapes(proto)

    def _reproduces(self, probe: fx.GraphModule) -> bool:
        """Does filling in give the graph that exporting the probe gives, constants and all?"""
        if not _same_program(probe, self._dense):
            return False
        try:
            ours, theirs = _optimised(self._filled(probe)), _optimised(_exported(probe, self._inputs))
        except CandidateFailure:
            return False
        return _content(ours) == _content(theirs)


def _content(proto: onnx.ModelProto) -> tuple[list[bytes], dict[str, bytes]]:
    """Nodes in order and initializers by name."""
    nodes = [node.SerializeToString(deterministic=True) for node in proto.graph.node]
    return nodes, {item.name: onnx.numpy_helper.to_array(item).tobytes() for item in proto.graph.initializer}


def _tensors(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and constant that the graph reads."""
    found = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.users and str(node.target) != "training":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            found[str(node.target)] = value
    return found


def _same_program(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Equal but for the tensors."""
    mine, theirs = list(a.graph.nodes), list(b.graph.nodes)
    return len(mine) == len(theirs) and all(
        (x.op, str(x.target), str(x.args), str(x.kwargs)) == (y.op, str(y.target), str(y.args), str(y.kwargs))
        for x, y in zip(mine, theirs, strict=True)
    )


def _exported(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """The graph as the exporter makes it, not optimised: parameters keep their names."""
    inputs, shapes = free_batch(module, example_inputs)
    module.eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                module, inputs, dynamo=True, verbose=False, opset_version=OPSET, dynamic_shapes=shapes, optimize=False
            )
            assert program is not None  # None only for the deprecated exporter
            return program.model_proto
    except Exception as error:  # the exporter raises what torch.export and onnxscript raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise CandidateFailure("export", f"{type(error).__name__}: {first}") from error


def _optimised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Constants folded, batch norm folded into convolutions: what ``torch.onnx.export(optimize=True)`` does."""
    from onnxscript import optimizer

    try:
        with _quiet():
            result = optimizer.optimize(proto)
    except Exception as error:  # a pass that fails raises its own type
        raise CandidateFailure("export", f"{type(error).__name__}: {error}") from error
    assert isinstance(result, onnx.ModelProto)
    _strip(result)
    return result


def _strip(proto: onnx.ModelProto) -> None:
    """The exporter writes stack traces with the paths of this machine into every node."""
    del proto.metadata_props[:]
    graph = proto.graph
    del graph.metadata_props[:]
    for group in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in group:
            del item.metadata_props[:]
    for function in proto.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]


def _save(proto: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if proto.ByteSize() > INLINE_LIMIT:
        onnx.save(proto, str(path), save_as_external_data=True, location=path.name + ".data")
    else:
        write_atomic(path, proto.SerializeToString())
    return path


def to_pt2(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], path: Path) -> Path:
    """Write ``module`` as an exported program, without sample inputs (torch would pickle them)."""
    inputs, shapes = free_batch(module, example_inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
        program._example_inputs = None
        torch.export.save(program, path)
    return path


def to_safetensors(module: torch.nn.Module, path: Path) -> Path:
    """Write the state dict; a tensor known by several names is stored under each."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    write_atomic(path, save(state))
    return path


def write_recipe(candidate: Candidate, folder: Path) -> Path:
    """recipe.json with the kept indices, and keep.safetensors with the masks as packed bits if there are any."""
    from hwprune.version import VERSION

    data: dict[str, Any] = {
        **candidate.recipe.to_json(),
        "digest": candidate.recipe.digest,
        "hwprune": VERSION,
        "model_fingerprint": candidate.fingerprint,
        "kept": {name: keep.nonzero().squeeze(1).tolist() for name, keep in candidate.keeps.items()},
        "sizes": {name: len(keep) for name, keep in candidate.keeps.items()},
    }
    if candidate.masks:
        packed = {}
        for name, mask in candidate.masks.items():
            packed[name] = torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))
            packed[f"{name}.shape"] = torch.tensor(mask.shape)
        write_atomic(folder / "keep.safetensors", save(packed))
        data["masks"] = {"file": "keep.safetensors", "sha256": sha256(folder / "keep.safetensors")}
    path = folder / "recipe.json"
    write_atomic(path, dump_json(data))
    return path


def read_recipe(path: Path) -> tuple[Recipe, str, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(recipe, fingerprint of the model it was made for, kept masks by axis, masks by parameter).

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
    table.finish()
    return recipe, fingerprint, keeps, _read_masks(path, masks) if masks else {}


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


def write_candidate(candidate: Candidate, folder: Path) -> Path:
    """model.onnx, model.safetensors, recipe.json (and keep.safetensors)."""
    to_onnx(candidate.module, candidate.example_inputs, folder / "model.onnx")
    to_safetensors(candidate.module, folder / "model.safetensors")
    write_recipe(candidate, folder)
    return folder
