"""``model.onnx`` with data from a file or a function -> a `Workload`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hwprune.errors import UsageError, WorkloadError
from hwprune.onnx_files import OnnxModule, read_onnx
from hwprune.structure.onnx.graph import OnnxGraph
from hwprune.workload import closeness, metrics
from hwprune.workload.workload import Workload

SPLITS = ("calibration", "validation", "test", "train")
CALIBRATION_SHARE = 4
"""A file without splits gives one in so many examples to calibration, the others to validation."""
SHUFFLE_SEED = 0
"""Seed of the order in which a file without splits is divided: the same examples in every run."""

Batch = tuple[tuple[torch.Tensor, ...], Any]


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
        arguments: ``metric`` and ``batch`` (examples in one batch of the example inputs).
        check: runs the file on the example inputs with a runtime, to compare; None: don't.

    Raises:
        UsageError: an opset that is too old, or arguments that don't fit.
        WorkloadError: the file can't be read, uses operators that hwprune can't compute, or is computed otherwise by the runtime.
    """
    proto = read_onnx(path)
    fields = dict(data or {})
    known = ("batch", "metric", "class_axis")
    faults = [f"{key} (known: {', '.join(known)})" for key in arguments if key not in known]
    if faults:
        raise UsageError("an ONNX workload takes no argument", faults)
    if "metric" in arguments:
        fields["metric"] = metrics.get(str(arguments["metric"])).name
    if "class_axis" in arguments:
        fields["class_axis"] = arguments["class_axis"]
    example = fields.pop("example_inputs", None)
    if example is None:
        example = _first(fields["validation"], int(arguments.get("batch", 1))) if "validation" in fields else made_up(proto)
    example = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    module = import_module(proto, example)
    if check is not None:
        _compare(module, example, check(path, example), path)
    if data is None:
        fields = {"calibration": [(example, None)], "validation": [(example, None)]}
    fields.setdefault("metric", "agreement")
    unknown = sorted(set(fields) - {*SPLITS, "metric", "loss", "class_axis"})
    if unknown or "validation" not in fields:
        raise UsageError(
            "the data must give validation, and of the rest only calibration, test, train, metric, loss, class_axis; got "
            f"{sorted(fields)}"
        )
    fields.setdefault("calibration", fields["validation"])
    return Workload(name=path.stem, model=module, example_inputs=example, **fields)


def import_module(proto: onnx.ModelProto, example: tuple[torch.Tensor, ...]) -> OnnxModule:
    """The module; sizes that are free only in name are fixed to those of the example."""
    graph = OnnxGraph(proto)
    module = OnnxModule(graph).eval()
    if not graph.unclear and _runs(module, example):
        return module
    names = [item.name for item in graph.model.graph.input]
    fixed = OnnxGraph(proto, sizes={name: tuple(x.shape) for name, x in zip(names, example, strict=False)})
    again = OnnxModule(fixed).eval()
    return again if len(fixed.unclear) < len(graph.unclear) or _runs(again, example) else module


@torch.no_grad()
def _runs(module: OnnxModule, example: tuple[torch.Tensor, ...]) -> bool:
    """Sizes that are computed from free ones (half of them, one more) can't be followed while they are free."""
    try:
        module(*example)
    except (RuntimeError, ValueError, IndexError, TypeError, WorkloadError):
        return False
    return True


def made_up(proto: onnx.ModelProto) -> tuple[torch.Tensor, ...]:
    """Example inputs of the declared shapes: a free first size is 1, any other 16; whole numbers are zeros."""
    stored = {item.name for item in proto.graph.initializer}
    tensors = []
    for item in proto.graph.input:
        if item.name in stored:
            continue
        kind = item.type.tensor_type
        sizes = [
            dim.dim_value if dim.dim_value > 0 else 1 if position == 0 else 16 for position, dim in enumerate(kind.shape.dim)
        ]
        dtype = torch.from_numpy(np.zeros(0, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))).dtype
        generator = torch.Generator().manual_seed(0)
        tensors.append(
            torch.randn(sizes, generator=generator).to(dtype) if dtype.is_floating_point else torch.zeros(sizes, dtype=dtype)
        )
    return tuple(tensors)


def inputs_of(proto: onnx.ModelProto) -> list[str]:
    """Names of the inputs that are no weights."""
    return [item.name for item in proto.graph.input if item.name not in {t.name for t in proto.graph.initializer}]


def named_inputs(path: Path, known: Sequence[str]) -> list[str]:
    """Those of ``known`` that an .npz file has arrays for, in their order; the first of them where it has one array alone.

    Raises `UsageError` if the file can't be read, or has arrays that are none of them.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = {name.partition(".")[2] if name.partition(".")[0] in SPLITS else name for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read as an .npz file: {error}") from error
    names -= {"targets", "labels", "y"}
    if len(names) == 1 and known:
        return list(names) if names <= set(known) else [known[0]]
    if unknown := sorted(names - set(known)):
        raise UsageError(f"{path} holds {', '.join(unknown)}, which the model does not take; it takes {', '.join(known)}")
    return [name for name in known if name in names]


def read_npz(path: Path, inputs: Sequence[str], batch: int = 64) -> dict[str, Any]:
    """Data from an .npz file: an array for each of ``inputs``, and optionally ``targets``.

    Names may start with ``calibration.``, ``validation.`` or ``test.``, and then examples keep their order. Without that a
    quarter of the examples calibrates and the rest validates, divided at random but the same way in every run: files are often
    sorted by class. Raises `UsageError` with what is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read as an .npz file: {error}") from error
    splits = [split for split in SPLITS if any(name.startswith(f"{split}.") for name in arrays)]
    if splits:
        if "validation" not in splits:
            raise UsageError(f"{path} has splits ({', '.join(splits)}) but no validation")
        return {
            split: _batches(
                *_columns(path, {n.removeprefix(f"{split}."): a for n, a in arrays.items() if n.startswith(f"{split}.")}, inputs),
                batch,
            )
            for split in splits
        }
    columns, targets = _columns(path, arrays, inputs)
    examples = len(columns[0])
    if examples < 2:
        raise UsageError(f"{path} holds {examples} examples: at least 2 are needed, one to calibrate and one to validate")
    order = np.random.default_rng(SHUFFLE_SEED).permutation(examples)
    first = max(1, examples // CALIBRATION_SHARE)
    return {
        split: _batches([array[part] for array in columns], None if targets is None else targets[part], batch)
        for split, part in (("calibration", order[:first]), ("validation", order[first:]))
    }


def _columns(
    path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], inputs: Sequence[str]
) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]:
    """The arrays of the inputs, and of the targets if there are any; all of the same length."""
    targets = next((arrays[name] for name in ("targets", "labels", "y") if name in arrays and name not in inputs), None)
    rest = [name for name in arrays if name not in ("targets", "labels", "y") or name in inputs]
    if len(inputs) == 1 and len(rest) == 1:
        columns = [arrays[rest[0]]]
    elif missing := [name for name in inputs if name not in arrays]:
        raise UsageError(
            f"{path} lacks an array for the model's input {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'none'}"
        )
    else:
        columns = [arrays[name] for name in inputs]
    lengths = {len(array) for array in (*columns, *(() if targets is None else (targets,)))}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(f"{path}: inputs and targets must have the same, non-zero number of examples, got {sorted(lengths)}")
    return columns, targets


def _batches(columns: Sequence[np.ndarray[Any, Any]], targets: np.ndarray[Any, Any] | None, size: int) -> list[Batch]:
    result: list[Batch] = []
    for start in range(0, len(columns[0]), size):
        part = tuple(torch.from_numpy(np.ascontiguousarray(array[start : start + size])) for array in columns)
        target = None if targets is None else torch.from_numpy(np.ascontiguousarray(targets[start : start + size]))
        result.append((part, target))
    return result


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
    allowed = closeness.TOLERANCES[closeness.precision([*module.parameters(), *module.buffers(), *example])]
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
