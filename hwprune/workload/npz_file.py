"""Data from an .npz file, in the types and shapes that a model declares."""

from __future__ import annotations

import difflib
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.errors import UsageError, WorkloadError
from hwprune.workload import batch_forms

SPLITS = ("calibration", "validation", "test", "train")
CALIBRATION_SHARE = 4
"""A file without splits gives one in so many examples to calibration, the others to validation."""
_TARGETS = ("targets", "labels", "y")
SHUFFLE_SEED = 0
"""Seed of the order in which a file without splits is divided: the same examples in every run."""

Batch = tuple[tuple[torch.Tensor, ...], Any]


@dataclass(frozen=True, slots=True)
class Declared:
    """An input as a model's file declares it.

    Attributes:
        sizes: of each dim; None for a free one; None as a whole: nothing is said.
    """

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...] | None = None


def named_inputs(path: Path, known: Sequence[str]) -> list[str]:
    """Those of ``known`` that an .npz file has arrays for, in their order; the first of them where it has one array alone.

    Raises `UsageError` if the file can't be read, or has arrays that are none of them.
    """
    _must_be_there(path)
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


def read_npz(path: Path, inputs: Sequence[str], batch: int = 64, declared: Sequence[Declared] = ()) -> dict[str, Any]:
    """Data from an .npz file: an array for each of ``inputs``, and optionally ``targets``.

    Types that lose no value are converted to those that the model declares.

    Args:
        batch: examples in a batch; of a model whose batch is fixed that size, and what is left over at the end is left out.
        declared: what the model says of its inputs.

    Names may start with ``calibration.``, ``validation.`` or ``test.``, and then examples keep their order. Without that a
    quarter of the examples calibrates and the rest validates, divided at random but the same way in every run: files are often
    sorted by class.

    Raises:
        UsageError: an array is missing, or does not fit: with its name, what it is, and what is wanted.
    """
    arrays = _read(path, inputs)
    fixed = {one.sizes[0] for one in declared if one.sizes and one.sizes[0] is not None}
    whole = len(fixed) == 1 and len(declared) == len([one for one in declared if one.sizes and one.sizes[0] is not None])
    batch = int(fixed.pop() or batch) if whole else batch
    splits = [split for split in SPLITS if any(name.startswith(f"{split}.") for name in arrays)]
    if splits:
        if "validation" not in splits:
            raise UsageError(f"{path} has splits ({', '.join(splits)}) but no validation")
        return {
            split: _batches(
                *_columns(path, _of_split(arrays, split), inputs, declared),
                batch,
                path,
                whole=whole,
            )
            for split in splits
        }
    columns, targets = _columns(path, arrays, inputs, declared)
    examples = len(columns[0])
    if examples < 2:
        raise UsageError(f"{path} holds {examples} examples: at least 2 are needed, one to calibrate and one to validate")
    order = np.random.default_rng(SHUFFLE_SEED).permutation(examples)
    first = max(1, examples // CALIBRATION_SHARE)
    return {
        split: _batches([array[part] for array in columns], None if targets is None else targets[part], batch, path, whole=whole)
        for split, part in (("calibration", order[:first]), ("validation", order[first:]))
    }


def _of_split(arrays: Mapping[str, np.ndarray[Any, Any]], split: str) -> dict[str, np.ndarray[Any, Any]]:
    return {name.removeprefix(f"{split}."): array for name, array in arrays.items() if name.startswith(f"{split}.")}


def _columns(
    path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], inputs: Sequence[str], declared: Sequence[Declared]
) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]:
    """The arrays of the inputs, and of the targets if there are any; all of the same length."""
    targets = next((arrays[name] for name in _TARGETS if name in arrays and name not in inputs), None)
    rest = [name for name in arrays if name not in _TARGETS or name in inputs]
    if len(inputs) == 1 and len(rest) == 1:
        columns = [arrays[rest[0]]]
    elif missing := [name for name in inputs if name not in arrays]:
        raise UsageError(
            f"{path} lacks an array for the model's input {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'none'}"
        )
    else:
        columns = [arrays[name] for name in inputs]
    if targets is None and (meant := [name for name in rest if difflib.get_close_matches(name.lower(), _TARGETS, 1, 0.7)]):
        raise UsageError(f"{path} holds {', '.join(meant)}: if those are the answers, call the array targets, labels or y")
    lengths = {len(array) for array in (*columns, *(() if targets is None else (targets,)))}
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(f"{path}: inputs and targets must have the same, non-zero number of examples, got {sorted(lengths)}")
    if len(declared) == len(columns):
        columns = [_fitting(array, one, path) for array, one in zip(columns, declared, strict=True)]
    return columns, targets


def _read(path: Path, inputs: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file, or the one of an .npy file, in this machine's byte order."""
    _must_be_there(path)
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            arrays = {inputs[0] if inputs else "x": stored}
        else:
            with stored:
                arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read as an .npz file: {error}") from error
    return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}


def _must_be_there(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"there is no file {path} (--data, looked in {Path.cwd()})")


def _batches(
    columns: Sequence[np.ndarray[Any, Any]],
    targets: np.ndarray[Any, Any] | None,
    size: int,
    path: Path,
    *,
    whole: bool,
) -> list[Batch]:
    tensors = [torch.from_numpy(np.asarray(array, order="C")) for array in columns]
    if whole and len(tensors[0]) < size:
        raise UsageError(
            f"{path} gives {len(tensors[0])} examples to a split, and the model computes with {size} at a time: give more, or "
            "export the model with a free first dim"
        )
    wanted = batch_forms.targets_of(targets, str(path)) if targets is not None else None
    result: list[Batch] = []
    for start in range(0, len(tensors[0]), size):
        part = tuple(tensor[start : start + size] for tensor in tensors)
        if not whole or len(part[0]) == size:
            result.append((part, None if wanted is None else wanted[start : start + size]))
    return result


def _fitting(array: np.ndarray[Any, Any], declared: Declared, path: Path) -> np.ndarray[Any, Any]:
    """The array in the type that the model declares."""
    what = f"{path}: array {declared.name} is {array.dtype} of shape {_text(array.shape)}"
    wanted = f"the model's input takes {str(declared.dtype).removeprefix('torch.')}"
    if declared.sizes is not None:
        wanted += f" of shape {_text([None, *declared.sizes[1:]])}"
        if not _fits(array.shape, declared.sizes):
            raise UsageError(f"{what}; {wanted} (the first dim holds the examples){_hint(array.shape, declared.sizes)}")
    if array.dtype.kind not in "biufc":
        raise UsageError(f"{what}; {wanted}")
    if declared.dtype == torch.bfloat16:  # NumPy has none: batches are converted
        return array
    try:
        made: np.ndarray[Any, Any] = batch_forms.converted(
            torch.from_numpy(np.asarray(array, order="C")), declared.dtype, what
        ).numpy()
    except WorkloadError as error:
        pixels = "; pixels of 0 to 255 have to be scaled as in training" if declared.dtype.is_floating_point else ""
        raise UsageError(f"{what}; {wanted}, and converting would change values{pixels}") from error
    return made


def _fits(shape: Sequence[int], sizes: Sequence[int | None]) -> bool:
    return len(shape) == len(sizes) and all(
        wanted is None or size == wanted for size, wanted in zip(shape[1:], sizes[1:], strict=True)
    )


def _hint(shape: Sequence[int], sizes: Sequence[int | None]) -> str:
    """What the array perhaps is."""
    if len(shape) == len(sizes) and len(shape) > 2:
        for axes in ((0, len(shape) - 1, *range(1, len(shape) - 1)), (0, *range(2, len(shape)), 1)):
            if _fits([shape[axis] for axis in axes], sizes):
                return f". With its channels moved it fits: array.transpose{axes}"
    if _fits([1, *shape], sizes):
        return ". It looks like one example: array[None]"
    known = [size for size in sizes[1:] if size is not None]
    if len(known) == len(sizes) - 1 and math.prod(shape[1:]) == math.prod(known):
        return f". Its examples have as many numbers: array.reshape(-1, {', '.join(map(str, known))})"
    return ""


def _text(sizes: Sequence[int | None]) -> str:
    return "x".join("N" if size is None else str(size) for size in sizes)
