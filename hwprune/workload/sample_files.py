"""Evaluation samples as a file: inputs and targets, a member for each tensor, without pickle."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.errors import UsageError
from hwprune.latency.samples import batch_order
from hwprune.workload.workload import Workload


def write_samples(workload: Workload, split: str, path: Path, part: slice | None = None) -> list[Any]:
    """Store the inputs of a split as an .npz (one member a batch and input, no pickle); returns the targets.

    Args:
        part: only these batches.
    """
    batches = part or slice(None)
    return write_batches(itertools.islice(workload.batches(split), batches.start, batches.stop), path)


def write_batches(batches: Iterable[tuple[tuple[torch.Tensor, ...], Any]], path: Path) -> list[Any]:
    """Store batches as `write_samples` does; returns the targets."""
    targets: list[Any] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for number, (inputs, target) in enumerate(batches):
            for position, tensor in enumerate(inputs):
                _write_member(archive, f"{number:05d}.input{position}", tensor)
            _write_targets(archive, f"{number:05d}", target)
            targets.append(target)
    temporary.replace(path)
    return targets


def _write_member(archive: zipfile.ZipFile, name: str, tensor: torch.Tensor) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, tensor.detach().cpu().contiguous().numpy(), allow_pickle=False)


def _write_targets(archive: zipfile.ZipFile, batch: str, target: Any) -> None:
    """A tensor, or lists and mappings of tensors: leaves, and the form as text. Targets of any other kind are left out."""
    if isinstance(target, torch.Tensor):
        _write_member(archive, f"{batch}.target", target)
        return
    leaves: list[torch.Tensor] = []
    try:
        form = json.dumps(_form(target, leaves))
    except TypeError:
        return
    if leaves:
        for place, leaf in enumerate(leaves):
            _write_member(archive, f"{batch}.target{place}", leaf)
        with archive.open(f"{batch}.form.npy", "w") as member:
            np.lib.format.write_array(member, np.array(form), allow_pickle=False)


def _form(target: Any, leaves: list[torch.Tensor]) -> Any:
    """Targets with the places of their tensors; tensors are added to ``leaves``. Raises `TypeError` for what is none of these."""
    if isinstance(target, torch.Tensor):
        leaves.append(target)
        return len(leaves) - 1
    if isinstance(target, Mapping):
        return {str(name): _form(value, leaves) for name, value in target.items()}
    if isinstance(target, (list, tuple)):
        return [_form(value, leaves) for value in target]
    if isinstance(target, (bool, int, float)):
        return {"number": target}
    raise TypeError(type(target).__name__)


def _formed(form: Any, leaves: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(form, int):
        return leaves[form]
    if isinstance(form, list):
        return [_formed(value, leaves) for value in form]
    return form["number"] if set(form) == {"number"} else {name: _formed(value, leaves) for name, value in form.items()}


def read_targets(path: Path) -> list[Any]:
    """The targets that `write_samples` stored, tuples as lists; None for a batch whose targets were of another kind."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = sorted({name.split(".")[0] for name in stored.files}, key=batch_order)
            return [_stored_target(stored, name) for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read as evaluation samples: {error}") from error


def _stored_target(stored: Any, batch: str) -> Any:
    if f"{batch}.target" in stored.files:
        return torch.from_numpy(stored[f"{batch}.target"])
    if f"{batch}.form" not in stored.files:
        return None
    numbers = [name.removeprefix(f"{batch}.target") for name in stored.files if name.startswith(f"{batch}.target")]
    return _formed(
        json.loads(str(stored[f"{batch}.form"])), {int(n): torch.from_numpy(stored[f"{batch}.target{n}"]) for n in numbers}
    )
