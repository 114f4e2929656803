"""The option database: units pruned in every way that was ever asked for, on disk, each computed once; and what this does.

One safetensors file for each (unit, pattern, level, method, compensation), one for the statistics of each kind and one for the
responses of all options of a search space, in a folder named by the model, the calibration
data and the code that computed it; so nothing stale is ever read, and targets, seeds and runs share what they have in common.
Files are memory-mapped: stitching a candidate reads the weights that it needs, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hwprune.calibration.gram import Calibration
from hwprune.common.files import cache_folder
from hwprune.layers.statistics import LayerStatistics
from hwprune.methods.layerwise import Solution
from hwprune.methods.method import Option
from hwprune.pruning.code_identity import identity_of, tensor_digest
from hwprune.structure.torch.opaque import opaque_model
from hwprune.version import VERSION
from hwprune.workload.workload import Workload

CODE = (
    "calibration",
    "criteria",
    "layers",
    "methods",
    "patterns",
    "second_order",
    "structure",
    "workload/batches.py",
    "workload/detection.py",
    "workload/metrics.py",
    "workload/reading.py",
    "workload/task_loss.py",
    "workload/workload.py",
)
"""Folders and files of hwprune that the options depend on."""


@functools.cache
def code_fingerprint() -> str:
    """Identifies the version and the code that computes options; 8 hex digits."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256(VERSION.encode())
    for name in CODE:
        path = folder / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def calibration_fingerprint(workload: Workload) -> str:
    """Identifies the calibration examples, in whatever order they come, the loss and the metric; 16 hex digits.

    The metric is in it because drawn or given labels go by it, see `hwprune.calibration.collect.collect_statistics`.
    """
    digests: list[bytes] = []
    for inputs, targets in workload.batches("calibration"):
        leaves = [*inputs, *torch.utils._pytree.tree_leaves(targets)]
        count = len(inputs[0]) if inputs[0].ndim else 1
        if all(isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == count for leaf in leaves):
            digests += [_hash([leaf[i] for leaf in leaves]) for i in range(count)]
        else:
            digests.append(_hash(leaves))
    judged = f"{identity_of(workload.loss)} {identity_of(workload.scoring)}"
    return hashlib.sha256(b"".join(sorted(digests)) + judged.encode()).hexdigest()[:16]


def _hash(leaves: Sequence[Any]) -> bytes:
    return hashlib.sha256("".join(map(identity_of, leaves)).encode()).digest()


def graph_fingerprint(module: torch.fx.GraphModule) -> str:
    """Identifies what the model computes, its weights aside; 16 hex digits."""
    model = opaque_model(module)
    text = str(module.graph) if model is None else identity_of(model)
    buffers = "".join(tensor_digest(tensor) for _, tensor in module.named_buffers())
    return hashlib.sha256((text + buffers).encode()).hexdigest()[:16]


def default_root() -> Path:
    """Where databases lie unless told otherwise: ``$HWPRUNE_DATABASE``, or in the user's cache folder."""
    given = os.environ.get("HWPRUNE_DATABASE")
    return Path(given) if given else cache_folder() / "database"


class Database:
    """Options and statistics of one model with its calibration data.

    Args:
        root: folder for all models; this one's is inside. It is made when something is first stored.
    """

    def __init__(self, root: Path, workload: Workload, model_fingerprint: str, module: torch.fx.GraphModule) -> None:
        code = f"{graph_fingerprint(module)}-{code_fingerprint()}"
        self.folder = root / f"{model_fingerprint}-{calibration_fingerprint(workload)}-{code}"

    def options(
        self,
        unit: str,
        pattern: str,
        method: str,
        compensation: str,
        levels: Sequence[float | None],
        compute: Callable[[list[float | None]], Sequence[Option]],
    ) -> list[Option]:
        """One option a level; those that are not stored yet are computed together, and stored."""
        files = [self._file(unit, pattern, method, compensation, level) for level in levels]
        options = [self._read(path) for path in files]
        missing = [level for level, option in zip(levels, options, strict=True) if option is None]
        if not missing:
            return [option for option in options if option is not None]
        computed = iter(compute(missing))
        for place, path in enumerate(files):
            if options[place] is None:
                option = next(computed)
                self._write(path, option)
                options[place] = self._read(path) or option
        return [option for option in options if option is not None]

    def holds(self, unit: str, pattern: str, method: str, compensation: str, levels: Sequence[float | None]) -> bool:
        """Are all these options stored? (One that is damaged counts, although it will be computed again.)"""
        return all(self._file(unit, pattern, method, compensation, level).is_file() for level in levels)

    def statistics(self, names: frozenset[str], compute: Callable[[], Calibration]) -> Calibration:
        """What `calibrate.collect_statistics` gives for these names."""
        path = self.folder / f"statistics-{_digest(sorted(names))}.safetensors"
        stored = _read_calibration(path)
        if stored is None:
            computed = compute()
            _write_calibration(path, computed)
            stored = _read_calibration(path) or computed
        return stored

    def responses(self, asked: Any, compute: Callable[[], tuple[Mapping[str, torch.Tensor], bool]]) -> dict[str, torch.Tensor]:
        """What options do to the outputs, as `hwprune.calibration.sensitivity.responses` gives it.

        All of one question lie in one file: rows are examples in the order in which the loader gave them, and a loader that
        shuffles gives others the next time, so that rows of two passes must not be mixed.

        Args:
            asked: everything that the answers depend on beside the model, its data and the code, as JSON values.
            compute: gives the answers, and whether they are complete: others are not stored.
        """
        path = self.folder / f"responses-{_digest(asked)}.safetensors"
        stored = _read_responses(path)
        if stored is None:
            answers, complete = compute()
            stored = {key: value.contiguous() for key, value in answers.items()}
            if complete:
                _store(path, {str(place): value for place, value in enumerate(stored.values())}, {"keys": json.dumps([*stored])})
        return stored

    def _file(self, *words: Any) -> Path:
        level = words[-1]
        return self.folder / f"{_digest([*words[:-1], None if level is None else round(level, 9)])}.safetensors"

    @staticmethod
    def _write(path: Path, option: Option) -> None:
        tensors = {"keep": torch.from_numpy(np.packbits(option.keep.cpu().numpy().reshape(-1)))}
        errors = {}
        for name, solution in option.solutions.items():
            tensors[f"weight/{name}"] = solution.weight.cpu().contiguous()
            if solution.shift is not None:
                tensors[f"shift/{name}"] = solution.shift.cpu().contiguous()
            errors[name] = solution.error
        facts = {
            "unit": option.unit,
            "pattern": option.pattern,
            "sparsity": option.sparsity,
            "method": option.method,
            "error": option.error,
            "shape": list(option.keep.shape),
            "errors": errors,
        }
        _store(path, tensors, {"option": json.dumps(facts)})

    @staticmethod
    def _read(path: Path) -> Option | None:
        try:
            with safe_open(path, "pt") as stored:
                facts = json.loads(stored.metadata()["option"])
                shape = facts["shape"]
                bits = np.unpackbits(stored.get_tensor("keep").numpy(), count=int(np.prod(shape)))
                names = set(stored.keys())
                solutions = {
                    name: Solution(
                        stored.get_tensor(f"weight/{name}"),
                        stored.get_tensor(f"shift/{name}") if f"shift/{name}" in names else None,
                        error,
                    )
                    for name, error in facts["errors"].items()
                }
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None  # not there, or damaged: it is computed again
        keep = torch.from_numpy(bits.astype(np.bool_)).reshape(shape)
        return Option(facts["unit"], facts["pattern"], facts["sparsity"], facts["method"], keep, facts["error"], solutions)


def _digest(words: Any) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:20]


def _store(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Whole or not at all; not synchronised to the disk, because whatever is lost is computed again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(tensors, temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_calibration(path: Path, calibration: Calibration) -> None:
    tensors: dict[str, torch.Tensor] = {}
    places: dict[int, str] = {}
    layers: dict[str, dict[str, Any]] = {}
    for layer, statistics in calibration.layers.items():
        row: dict[str, Any] = {}
        for item in dataclasses.fields(statistics):
            value = getattr(statistics, item.name)
            if isinstance(value, int):
                row[item.name] = value
            elif isinstance(value, torch.Tensor):
                # Layers that read the same tensor share their Gram matrix, here too.
                row[item.name] = places.setdefault(id(value), f"{layer}/{item.name}")
                tensors.setdefault(row[item.name], value.contiguous())
        layers[layer] = row
    facts = {"layers": layers, "influence": dict(calibration.influence), "examples": calibration.examples}
    _store(path, tensors, {"calibration": json.dumps(facts)})


def _read_calibration(path: Path) -> Calibration | None:
    try:
        with safe_open(path, "pt") as stored:
            facts = json.loads(stored.metadata()["calibration"])
            layers = {
                name: LayerStatistics(**{key: stored.get_tensor(v) if isinstance(v, str) else v for key, v in row.items()})
                for name, row in facts["layers"].items()
            }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return Calibration(layers, facts["influence"], facts["examples"])


def _read_responses(path: Path) -> dict[str, torch.Tensor] | None:
    try:
        with safe_open(path, "pt") as stored:
            keys = json.loads(stored.metadata()["keys"])
            return {key: stored.get_tensor(str(place)) for place, key in enumerate(keys)}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
