"""A point of a front that is exported: where its files are, and what was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune import patterns
from hwprune.errors import UsageError
from hwprune.onnx_files import recipe_files
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.pruner import Pruner
from hwprune.records.record import Record
from hwprune.workload import loading
from hwprune.workload.workload import Workload

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an ONNX file.

    Attributes:
        opset: version of the operators; None: as it is. Files are made with 20; older ones suit older runtimes.
        precision: ``fp16`` holds the weights in 16 bits; inputs and outputs stay in 32.
        external: weights in a file beside the model.
        batch: fix the batch dimension; None: it stays free, where the model has a free one.
    """

    opset: int | None = None
    precision: str = "fp32"
    external: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.precision not in PRECISIONS:
            faults.append(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.opset is not None and self.opset < 13:
            faults.append(f"opset must be 13 or newer, got {self.opset}")
        if self.batch is not None and self.batch < 1:
            faults.append(f"batch must be at least 1, got {self.batch}")
        if faults:
            raise UsageError("this can't be exported:", faults)

    @property
    def plain(self) -> bool:
        return self == Options()

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class ExportedPoint:
    """What a format is made from: a point of a run, its folder, and where its files go."""

    record: Record
    number: int
    source: Path
    out: Path
    options: Options
    workload: Workload | None = None

    @property
    def quantised(self) -> Mapping[str, Any] | None:
        facts: Mapping[str, Any] | None = self.record.trial(self.number).get("quantised")
        return facts

    @property
    def onnx_file(self) -> Path:
        """The file that was measured. Raises `UsageError` if it was no ONNX file."""
        if (name := self.record.model_file) != "model.onnx":
            raise UsageError(f"the run measured {name} files: export them with --format pt2")
        return self.source / "model.onnx"

    def pruner(self) -> Pruner:
        """A pruner of the workload that the run was made with. Raises `UsageError`."""
        self.refuse_quantised()
        workload = self.workload
        if workload is None:
            if not self.record.data["workload"]["source"]:
                raise UsageError("the run was made from a live Python object: name its workload with --workload")
            workload = loading.load(self.record.data["workload"]["source"])
        return Pruner(workload)

    def refuse_quantised(self) -> None:
        """Raises `UsageError` for a point whose weights no PyTorch module holds."""
        if self.quantised is not None:
            of = self.quantised["of"]
            rather = "" if of == "dense" else f", or the trial that it was made of ({of}) as this"
            raise UsageError(
                f"trial {self.number} is quantised: its weights are in model.onnx alone. Export it with --format onnx{rather}"
            )

    def candidate(self, pruner: Pruner) -> Candidate:
        """The candidate with the weights that were stored, trained ones included. Raises `UsageError`."""
        from safetensors.torch import load_file

        stored = recipe_files.read_recipe(self.source / "recipe.json")
        if stored.fingerprint != pruner.fingerprint:
            raise UsageError("the workload's model is not the one that the run was made with (fingerprint differs)")
        drop = [choice.unit for choice in stored.recipe.choices if choice.pattern == patterns.BRANCH]
        module = pruner.graph.cut(stored.keeps, drop)
        module.load_state_dict(load_file(self.source / "model.safetensors"))
        return Candidate(
            module=module, recipe=stored.recipe, keeps=stored.keeps, drop=tuple(drop), masks=stored.masks,
            fingerprint=pruner.fingerprint, example_inputs=pruner.workload.example_inputs, macs=0,
            template=lambda: pruner.template, orders=stored.orders,
        )  # fmt: skip


def copy_recipe(point: ExportedPoint) -> list[str]:
    return copy(point.source, point.out, ["recipe.json", "keep.safetensors", "recovery.json"])


def copy(source: Path, out: Path, names: list[str], rename: Mapping[str, str] | None = None) -> list[str]:
    """Those of ``names`` that are there; the names that they have in ``out``."""
    done = []
    for name in names:
        if (source / name).is_file():
            target = (rename or {}).get(name, name)
            shutil.copyfile(source / name, out / target)
            done.append(target)
    return done
