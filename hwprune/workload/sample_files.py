"""Evaluation samples as a file: inputs and targets, a member for each tensor, without pickle."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
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
    if isinstance(target, torch.Tensor) and target.dtype != torch.bfloat16:  # NumPy has no bfloat16
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
    """Targets with the places of their tensors; tensors are added to ``leaves``. Raises `TypeError` for what can't be stored."""
    if isinstance(target, np.ndarray) and target.dtype.kind in "biuf":
        target = torch.from_numpy(np.ascontiguousarray(target))
    if isinstance(target, torch.Tensor) and target.dtype != torch.bfloat16:
        leaves.append(target)
        return {"tensor": len(leaves) - 1}
    if isinstance(target, Mapping):
        return {"map": [[_form(name, leaves), _form(value, leaves)] for name, value in target.items()]}
    if isinstance(target, (list, tuple)):
        return {type(target).__name__ if type(target) in (list, tuple) else "tuple": [_form(value, leaves) for value in target]}
    plain = target.item() if isinstance(target, np.generic) else target
    if plain is None or isinstance(plain, (bool, int, float, str)):
        return {"plain": plain}
    raise TypeError(type(target).__name__)


def _formed(form: Any, leaves: Mapping[int, torch.Tensor]) -> Any:
    ((kind, value),) = form.items()
    if kind == "tensor":
        return leaves[value]
    if kind == "map":
        return {_formed(name, leaves): _formed(one, leaves) for name, one in value}
    if kind in ("list", "tuple"):
        found = [_formed(one, leaves) for one in value]
        return tuple(found) if kind == "tuple" else found
    return value


def read_targets(path: Path) -> list[Any]:
    """The targets that `write_samples` stored; None for a batch whose targets were of another kind."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            members: dict[str, list[str]] = {}
            for name in stored.files:
                members.setdefault(name.split(".")[0], []).append(name.partition(".")[2])
            return [_stored_target(stored, batch, members[batch]) for batch in sorted(members, key=batch_order)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read as evaluation samples: {error}") from error


def _stored_target(stored: Any, batch: str, members: Sequence[str]) -> Any:
    if "target" in members:
        return torch.from_numpy(stored[f"{batch}.target"])
    if "form" not in members:
        return None
    numbers = [int(name.removeprefix("target")) for name in members if name.startswith("target")]
    leaves = {number: torch.from_numpy(stored[f"{batch}.target{number}"]) for number in numbers}
    return _formed(json.loads(str(stored[f"{batch}.form"])), leaves)
