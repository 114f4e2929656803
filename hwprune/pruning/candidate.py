"""A candidate: the pruned module with its recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx

from hwprune.common import formatting, html_table
from hwprune.onnx_files import recipe_files, to_onnx
from hwprune.onnx_files.template import Template
from hwprune.pruning import file_check
from hwprune.records.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A recipe applied.

    Attributes:
        module: the pruned model, trainable, with the original parameter names.
        keeps: axis name -> kept indices as a bool tensor.
        drop: branches that are gone.
        masks: parameter name -> keep mask in the shape that the parameter has after the cut.
        fingerprint: of the dense model.
        macs: multiply-accumulates of one run on the example inputs.
        template: gives what writes its ONNX file.
        orders: axis name -> new order of its kept indices, for N:M with permutation.
    """

    module: fx.GraphModule
    recipe: Recipe
    keeps: Mapping[str, torch.Tensor]
    drop: tuple[str, ...]
    masks: Mapping[str, torch.Tensor]
    fingerprint: str
    example_inputs: tuple[torch.Tensor, ...]
    macs: int
    template: Callable[[], Template]
    orders: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def export(self, folder: str | Path) -> Path:
        """Write model.onnx, model.safetensors, recipe.json and keep.safetensors; returns the folder.

        The file is loaded and run once on the example inputs before anything is called done.

        Raises:
            CandidateFailure: (stage ``export``) it can't be written, or (``parity``) it computes something else.
        """
        folder = Path(folder)
        self.template().write(self.module, self.keeps, folder / "model.onnx", self.drop)
        file_check.check_file(folder / "model.onnx", self.module, self.example_inputs)
        to_onnx.to_safetensors(self.module, folder / "model.safetensors")
        self.write_recipe(folder)
        return folder

    def _repr_html_(self) -> str:
        """What a notebook shows: what is kept of each axis, what is masked, what is gone."""
        rows = [[name, f"{int(keep.sum())} of {keep.numel()}"] for name, keep in self.keeps.items()]
        rows += [[name, f"{int(mask.sum())} of {mask.numel()} weights"] for name, mask in self.masks.items()]
        rows += [[name, "dropped"] for name in self.drop]
        parameters = sum(p.numel() for p in self.module.parameters())
        note = f"{formatting.count(parameters)} parameters, {formatting.count(self.macs)} multiply-accumulates"
        return html_table.table("Candidate", ["what", "kept"], rows, note)

    def write_recipe(self, folder: Path) -> Path:
        """Write recipe.json, and keep.safetensors if there are masks."""
        return recipe_files.write_recipe(self.recipe, self.fingerprint, self.keeps, self.masks, folder, self.orders)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())
