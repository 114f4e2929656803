"""recipe.json with its masks beside it, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hwprune.common.files import dump_json, read_json_table, sha256, write_atomic
from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe
from hwprune.version import VERSION


def write_recipe(
    recipe: Recipe,
    fingerprint: str,
    keeps: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    folder: Path,
    orders: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write recipe.json with the kept indices, and keep.safetensors with the masks as packed bits if there are any."""
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
