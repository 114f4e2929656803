"""What loaders yield, in the forms in which people write them, as (inputs, targets) of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hwprune.errors import WorkloadError

LABELS = ("labels", "label", "targets", "target", "y")
"""Names under which loaders yield what is wanted."""


def pair(item: Any, count: int, arguments: Callable[[], Sequence[str]], where: str) -> tuple[Any, Any]:
    """Inputs and targets of whatever a loader yields.

    A tensor alone; a pair; the inputs one by one and then the targets; a mapping, as loaders of Hugging Face data sets yield it:
    the model's arguments by name or in order, and the labels.

    Args:
        count: of the model's inputs.
        arguments: names of the model's arguments.

    Raises:
        WorkloadError: it is none of these.
    """
    if isinstance(item, torch.Tensor):
        return item, None
    if isinstance(item, Mapping):
        return _of_mapping(item, count, arguments(), where)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        if isinstance(item[0], Mapping):
            return _of_mapping(item[0], count, arguments(), where)[0], item[1]
        return item[0], item[1]
    several = isinstance(item, (tuple, list)) and len(item) > 2
    if several and count > 1 and len(item) == count + 1 and all(isinstance(x, torch.Tensor) for x in item[:-1]):
        return tuple(item[:-1]), item[-1]
    hint = "; leave out what is neither an input nor the targets: ((x, y) for x, y, *_ in loader) in a list" if several else ""
    raise WorkloadError(f"{where} must be a pair (inputs, targets), got {describe(item)}{hint}")


def _of_mapping(item: Mapping[Any, Any], count: int, wanted: Sequence[str], where: str) -> tuple[Any, Any]:
    labels = next((item[name] for name in LABELS if name in item), None)
    names = [str(name) for name in item if name not in LABELS]
    known = [name for name in wanted if name in names][:count]
    if len(known) < count and len(names) == count:
        known = names  # of one input, or in the loader's order: the names say nothing
    if len(known) != count or not all(isinstance(item[name], torch.Tensor) for name in known):
        raise WorkloadError(
            f"{where} is a mapping with {', '.join(map(str, item))}; the model takes {', '.join(wanted) or 'inputs'}, of which "
            f"example_inputs has {count}: give tensors under these names, and labels under {', '.join(LABELS)}"
        )
    return tuple(item[name] for name in known), labels


def converted(tensor: torch.Tensor, dtype: torch.dtype, what: str) -> torch.Tensor:
    """In the type that the model takes, where that changes no value but by rounding of floating-point numbers.

    Raises:
        WorkloadError: it would; says what is there, and what is wanted.
    """
    if tensor.dtype == dtype:
        return tensor
    made, same = tensor, False
    if not tensor.is_complex() and not dtype.is_complex and torch.bool not in (tensor.dtype, dtype):
        made = tensor.to(dtype)
        if tensor.is_floating_point() and dtype.is_floating_point:
            same = torch.isfinite(made).equal(torch.isfinite(tensor))
        elif tensor.is_floating_point():  # whole numbers held as floats, as ids often are
            same = bool((made.to(tensor.dtype) == tensor).all())
        elif not dtype.is_floating_point:
            same = bool((made.long() == tensor.long()).all())
    if not same:
        pixels = "; pixels of 0 to 255 have to be scaled as in training" if dtype.is_floating_point else ""
        raise WorkloadError(f"{what} are {tensor.dtype}, the model takes {dtype}: convert the data{pixels}")
    return made


def targets_of(targets: Any, where: str) -> Any:
    """Targets as tensors where they are arrays or lists of numbers; whole numbers in 64 bits, which losses take.

    Raises:
        WorkloadError: they are texts.
    """
    if isinstance(targets, (list, tuple)) and targets and all(isinstance(x, (int, float, np.number)) for x in targets):
        targets = np.asarray(targets)
    elif isinstance(targets, (list, tuple)) and targets and all(isinstance(x, (str, bytes)) for x in targets):
        targets = np.asarray(targets, dtype=object)
    if isinstance(targets, np.ndarray):
        if targets.dtype.kind in "SUO":
            raise WorkloadError(f"{where} has texts as targets: give the numbers of the classes that the model was trained with")
        signed = targets.astype(np.int64) if targets.dtype.kind == "u" else targets
        targets = torch.from_numpy(np.asarray(signed, order="C"))
    whole = isinstance(targets, torch.Tensor) and not targets.dtype.is_floating_point and not targets.dtype.is_complex
    return targets.long() if whole and targets.dtype != torch.bool else targets


def describe(value: object) -> str:
    """Kind of a value, and of its parts."""
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)} ({', '.join(type(item).__name__ for item in value[:4])})"
    return type(value).__name__
