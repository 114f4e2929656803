"""Export as ONNX: opset, fixed batch, external weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from hwprune.deploy.point import ExportedPoint, Options, copy, copy_recipe
from hwprune.errors import CandidateFailure, UsageError, first_line
from hwprune.onnx_files import to_onnx

REDUCE_AXES = 18
"""Opset in which reductions got ``noop_with_empty_axes``."""
LARGE = 64
"""Bytes from which a weight goes into the file beside the model; shapes and scalars stay where checkers can read them."""


def write_onnx_point(point: ExportedPoint) -> list[str]:
    done = copy_recipe(point) + copy(point.source, point.out, ["model.safetensors", "quantise.json"])
    write_onnx(point.onnx_file, point.out / "model.onnx", point.options)
    return [*done, *(path.name for path in sorted(point.out.glob("model.onnx*")))]


def write_onnx(source: Path, path: Path, options: Options) -> None:
    """The measured file, converted as asked for. Raises `CandidateFailure` if it can't be."""
    if options.plain:
        for part in sorted(source.parent.glob("model.onnx*")):
            shutil.copyfile(part, path.parent / part.name)
        return
    model = onnx.load(str(source))
    model = converted_opset(model, options.opset)
    if options.precision != "fp32":
        model = to_onnx.converted(model, options.precision)
    if options.batch is not None:
        _fix_batch(model, options.batch)
    if options.external:
        onnx.save(model, str(path), save_as_external_data=True, location=path.name + ".data", size_threshold=LARGE)
    else:
        to_onnx.save_onnx(model, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise CandidateFailure("export", f"the converted file is no valid ONNX: {first_line(error)}") from error


def converted_opset(model: onnx.ModelProto, opset: int | None) -> onnx.ModelProto:
    """The model with another version of the standard operators. Raises `CandidateFailure`, `UsageError`."""
    import onnx.version_converter

    now = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset is None or opset == now:
        return model
    if opset > onnx.defs.onnx_opset_version():
        raise UsageError(f"the installed onnx knows opsets up to {onnx.defs.onnx_opset_version()}, got {opset}")
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises its own types
        raise CandidateFailure("export", f"opset {now} -> {opset}: {first_line(error)}") from error
    for node in converted.graph.node if opset < REDUCE_AXES else ():  # the converter leaves in what older opsets don't know
        for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes" and not a.i]:
            node.attribute.remove(attribute)
    return converted


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """The free dims of inputs and outputs that bear the batch's name are set; shapes in between follow from them."""
    names = {item.type.tensor_type.shape.dim[0].dim_param for item in model.graph.input if item.type.tensor_type.shape.dim} - {""}
    if not names:
        raise UsageError("the model's batch is fixed already: leave --batch out")
    for item in (*model.graph.input, *model.graph.output):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = batch
    del model.graph.value_info[:]
