"""``model.onnx`` with data from a file or a function -> a `Workload`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import torch

from hwprune.errors import HwpruneError, HwpruneWarning, UsageError, WorkloadError, described
from hwprune.onnx_files import OnnxModule, qdq, read_onnx
from hwprune.structure.onnx.flatten import MIN_OPSET, write_notes
from hwprune.structure.onnx.graph import OnnxGraph
from hwprune.workload import batch_forms, closeness, metrics, onnx_signature
from hwprune.workload.npz_file import SPLITS, Declared
from hwprune.workload.workload import Workload

CONVERTED_TO = 17
"""The opset of a file that was too old."""


def load(
    path: Path,
    data: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
    check: Callable[[Path, tuple[torch.Tensor, ...]], list[np.ndarray[Any, Any]]] | None,
) -> Workload:
    """A workload from an ONNX file.

    Args:
        data: fields of `Workload` (calibration, validation, test, example_inputs, metric, ...); None: the model alone, with
            made-up example inputs, for looking at its structure.
        arguments: ``metric``, ``class_axis``, ``batch`` (examples in one batch of example inputs), ``shape`` (sizes of made-up
            inputs, ``1x3x224x224``; of several inputs joined by commas) and ``output`` (names of the outputs that stay, joined by
            commas).
        check: runs the file on the example inputs with a runtime, to compare; None: don't.

    Raises:
        UsageError: an opset that is too old, or arguments that don't fit.
        WorkloadError: the file can't be read, uses operators that hwprune can't compute, or is computed otherwise by the runtime.
    """
    proto = modern(read_onnx(path), path)
    fields = dict(data or {})
    known = ("batch", "metric", "class_axis", "shape", "output")
    faults = [f"{key} (known: {', '.join(known)})" for key in arguments if key not in known]
    if faults:
        raise UsageError("an ONNX workload takes no argument", faults)
    proto, places = onnx_signature.with_outputs(proto, str(arguments.get("output", "")), path)
    if "metric" in arguments:
        fields["metric"] = metrics.get(str(arguments["metric"])).name
    if "class_axis" in arguments:
        fields["class_axis"] = arguments["class_axis"]
    batch = arguments.get("batch", onnx_signature.batch_of(proto) or 1)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise UsageError(f"batch must be a whole number of examples, at least 1, got {batch!r}")
    example = fields.pop("example_inputs", None)
    if example is None:
        example = (
            _first(fields["validation"], batch)
            if "validation" in fields
            else onnx_signature.made_up(proto, onnx_signature.sizes_of(str(arguments.get("shape", ""))))
        )
    made = data is None and "shape" not in arguments
    example = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    inputs = onnx_signature.declared(proto)
    if len(inputs) == len(example):
        example = tuple(
            batch_forms.converted(x, one.dtype, f"{path}: the data's inputs") for x, one in zip(example, inputs, strict=True)
        )
    module = import_module(proto, example)
    if check is not None:
        try:
            everything = _run(check, path, example, inputs)
            _compare(module, example, [everything[place] for place in places], path)
        except WorkloadError as error:
            raise (
                WorkloadError(onnx_signature.ask_for_sizes(error, inputs)) if made and onnx_signature.has_free(inputs) else error
            ) from error
    if data is None:
        fields = {"calibration": [(example, None)], "validation": [(example, None)]}
    fields.setdefault("metric", "top1" if data is not None and _has_classes(fields.get("validation")) else "agreement")
    unknown = sorted(set(fields) - {*SPLITS, "metric", "loss", "class_axis"})
    if unknown or "validation" not in fields:
        raise UsageError(
            "the data must give validation, and of the rest only calibration, test, train, metric, loss, class_axis; got "
            f"{sorted(fields)}"
        )
    fields.setdefault("calibration", fields["validation"])
    return Workload(name=path.stem, model=module, example_inputs=example, **fields)


def _has_classes(loader: Any) -> bool:
    """Are there labels, and whole numbers at that? Of others nobody knows how they are to be judged."""
    targets = next((targets for _, targets in loader or ()), None)
    return isinstance(targets, torch.Tensor) and not targets.is_floating_point()


def modern(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model in an opset that hwprune reads; whoever has the runtime compares the two.

    Raises:
        UsageError: its opset is older, and ONNX's converter can't bring it to a newer one.
    """
    opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset >= MIN_OPSET:
        return proto
    try:
        made = onnx.version_converter.convert_version(proto, CONVERTED_TO)
    except Exception as error:  # the converter raises its own types
        raise UsageError(
            f"{path} has opset {opset}; hwprune reads {MIN_OPSET} and newer, and ONNX's converter can't bring it there "
            f"({described(error)}): export the model again with opset {CONVERTED_TO}"
        ) from error
    write_notes(proto, made)
    made.ir_version = max(made.ir_version, 8)
    text = f"{path} has opset {opset}: it is converted to {CONVERTED_TO}, and pruned files have that one"
    warnings.warn(text, HwpruneWarning, stacklevel=2)
    return made


def _run(
    check: Callable[[Path, tuple[torch.Tensor, ...]], list[np.ndarray[Any, Any]]],
    path: Path,
    example: tuple[torch.Tensor, ...],
    inputs: Sequence[Declared],
) -> list[np.ndarray[Any, Any]]:
    try:
        return check(path, example)
    except HwpruneError:
        raise
    except Exception as error:  # the runtime raises its own types
        given = " and ".join("x".join(map(str, x.shape)) or "()" for x in example)
        raise WorkloadError(
            f"the runtime does not run {path} on the first example of the data "
            f"(inputs {', '.join(one.name for one in inputs)} of shape {given}): {' '.join(str(error).split())[:300]}"
        ) from error


def import_module(proto: onnx.ModelProto, example: tuple[torch.Tensor, ...]) -> OnnxModule:
    """The module; sizes that are free only in name are fixed to those of the example."""
    proto = qdq.unfolded(proto)
    graph = OnnxGraph(proto)
    module = OnnxModule(graph).eval()
    runs = _runs(module, example)
    if runs and (learned := module.learned_sizes()):
        graph = OnnxGraph(proto, learned=learned)
        module = OnnxModule(graph).eval()
        runs = _runs(module, example)
    if runs and not graph.unclear:
        return module
    names = [item.name for item in graph.model.graph.input]
    if runs and module.kept_nodes:  # what a detector finds has no size that could be fixed
        return module
    fixed = OnnxGraph(proto, sizes={name: tuple(x.shape) for name, x in zip(names, example, strict=False)})
    again = OnnxModule(fixed).eval()
    return again if len(fixed.unclear) < len(graph.unclear) or _runs(again, example) else module


@torch.no_grad()
def _runs(module: OnnxModule, example: tuple[torch.Tensor, ...]) -> bool:
    """Sizes that are computed from free ones (half of them, one more) can't be followed while they are free."""
    try:
        module(*example)
        if module.kept_nodes:  # what they give at another batch tells which sizes follow it
            with contextlib.suppress(Exception):  # a fixed batch; the runtime raises its own types
                module(*(torch.cat([x, x]) if x.ndim else x for x in example))
    except (RuntimeError, ValueError, IndexError, TypeError, WorkloadError):
        return False
    return True


def _first(loader: Any, count: int) -> tuple[torch.Tensor, ...]:
    for inputs, _ in loader:
        return tuple(x[:count] for x in ((inputs,) if isinstance(inputs, torch.Tensor) else inputs))
    raise WorkloadError("the validation data is empty: it must yield at least one (inputs, targets) batch")


@torch.no_grad()
def _compare(module: OnnxModule, example: tuple[torch.Tensor, ...], expected: list[np.ndarray[Any, Any]], path: Path) -> None:
    try:
        outputs = module(*example)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise WorkloadError(f"{path} can't be computed by hwprune: {error}") from error
    ours = outputs if isinstance(outputs, tuple) else (outputs,)
    allowed = closeness.TOLERANCES[closeness.of_model(module, example)]
    for place, (mine, theirs) in enumerate(zip(ours, expected, strict=True)):
        other = torch.from_numpy(np.asarray(theirs))
        if mine.shape != other.shape:
            raise WorkloadError(f"{path}: the runtime gives an output of shape {tuple(other.shape)}, hwprune {tuple(mine.shape)}")
        off = closeness.difference(mine, other)
        if not off <= allowed:
            raise WorkloadError(
                f"{path}: hwprune computes something else than the runtime (relative difference {off:.2g}): "
                f"{_who_is_off(module, example, place, mine, other, allowed)}"
            )


def _who_is_off(
    module: OnnxModule, example: tuple[torch.Tensor, ...], place: int, mine: torch.Tensor, other: torch.Tensor, allowed: float
) -> str:
    """Whose output is farther from the one in 64 bits."""
    understood = "an operator is understood wrongly. Please report it with the model's operators"
    try:
        exact = module.double()(*(x.double() if x.is_floating_point() else x for x in example))
    except (ValueError, RuntimeError, IndexError, TypeError, WorkloadError):
        return understood
    wanted = (exact if isinstance(exact, tuple) else (exact,))[place]
    ours, theirs = closeness.difference(mine, wanted), closeness.difference(other, wanted)
    if not ours <= allowed < theirs:
        return understood
    return (
        f"computed in 64 bits, hwprune's outputs are off by {ours:.2g} and the runtime's by {theirs:.2g}. It is the runtime that "
        "is off on these inputs: values inside are too large or too small for its precision, or a fused operator is wrong"
    )
