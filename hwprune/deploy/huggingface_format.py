"""Export with ``save_pretrained`` of the user's own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwprune.deploy.point import ExportedPoint, copy_recipe
from hwprune.errors import UsageError, described
from hwprune.pruning.own_class import apply_to_module


def write_huggingface(point: ExportedPoint) -> list[str]:
    """``save_pretrained`` of the user's own class, where it is one of transformers and can hold the shapes."""
    pruner = point.pruner()
    candidate = point.candidate(pruner)
    holder = pruner.workload.model
    if not _savers(holder):
        raise UsageError(
            f"{type(holder).__name__} is no transformers model and holds none (nothing has save_pretrained): "
            "export it with --format safetensors"
        )
    name, model = _savers(apply_to_module(holder, candidate))[0]
    try:
        model.save_pretrained(str(point.out), safe_serialization=True)
    except Exception as error:  # the library raises what it meets
        raise UsageError(f"save_pretrained of {type(model).__name__} failed: {type(error).__name__}: {error}") from error
    if fault := _not_loadable(model, point.out):
        raise UsageError(
            f"{type(model).__name__} does not load what was pruned: {fault}. Its configuration has one size for all layers; "
            "prune with --space tied, so that all layers keep the same, or export --format safetensors"
        )
    if name:
        (point.out / "README.md").write_text(
            f"This is the part `{name}` of the workload's model; the rest is in the `safetensors` format.\n", encoding="utf-8"
        )
    return [*copy_recipe(point), *sorted(path.name for path in point.out.iterdir() if path.name != "recipe.json")]


def _savers(model: Any) -> list[tuple[str, Any]]:
    """Parts that write folders for ``from_pretrained``, the outermost first."""
    return [(name, part) for name, part in model.named_modules() if hasattr(part, "save_pretrained") and hasattr(part, "config")]


def _not_loadable(model: Any, folder: Path) -> str | None:
    """Why the class does not give the same weights back from a folder; None: it does."""
    try:
        again = type(model).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises what it meets
        return described(error)
    mine, loaded = model.state_dict(), again.state_dict()
    if mine.keys() != loaded.keys():
        return f"{len(mine.keys() ^ loaded.keys())} tensors differ in name"
    wrong = [name for name in mine if mine[name].shape != loaded[name].shape or not bool((mine[name] == loaded[name]).all())]
    return f"{len(wrong)} tensors differ, {wrong[0]} first" if wrong else None
