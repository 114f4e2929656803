"""A language model as one ``torch.export`` program with a static cache: what PyTorch runs without the model's code.

Keys and values lie in buffers with room for so many tokens, and every call says where its tokens stand: nothing is copied from
step to step, all shapes of a step are the same, and so it can be compiled, or captured as a CUDA graph.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hwprune.errors import RunError, UsageError, described
from hwprune.onnx_files.tidy import quiet
from hwprune.streaming.cached_onnx import TOLERANCE, CacheShape, cache_shape
from hwprune.streaming.folder import UNEVEN, LanguageFolder, fill, skeleton
from hwprune.streaming.uneven import Uneven

FILE = "model.pt2"
"""Its name in a folder."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Classes write the types of what they round into the program: it must be exported in the one in which it will run."""
ROUNDED = 0.05
"""As `TOLERANCE`, in 16 bits."""


@dataclass(frozen=True, slots=True)
class StaticShape(CacheShape):
    """Sizes of what is kept of each token; the program keeps it itself."""

    def inputs(self, batch: int, count: int, past: int) -> list[np.ndarray[Any, Any]]:
        """Tokens (batch, count), and where they stand (count,)."""
        return [np.ones((batch, count), np.int64), np.arange(past, past + count, dtype=np.int64)]


class WithStaticCache(nn.Module):
    """(tokens (batch, n), their places (n,)) -> logits (batch, n, words); keys and values stay in buffers.

    Args:
        positions: tokens that there is room for.
    """

    def __init__(self, model: nn.Module, batch: int, positions: int) -> None:
        super().__init__()
        from transformers.cache_utils import Cache, StaticLayer

        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.argument = next((name for name in ("past_key_values", "cache") if name in takes), "")
        self.placed = "position_ids" in takes
        made = _kept(model, self.argument)
        self.cache = Cache(layers=[StaticLayer(positions) for _ in made])
        self.attending = [place for place, pair in enumerate(made) if pair is not None]
        for layer, pair in zip(self.cache.layers, made, strict=True):
            empty = torch.zeros(batch, 1, 1, 1, dtype=next(model.parameters()).dtype)
            layer.lazy_initialization(*(empty.expand(batch, x.shape[1], 1, x.shape[3]) for x in pair or (empty, empty)))
        for place in self.attending:
            self.register_buffer(f"keys_{place}", self.cache.layers[place].keys)
            self.register_buffer(f"values_{place}", self.cache.layers[place].values)

    def forward(self, input_ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        for place, layer in enumerate(self.cache.layers):
            layer.cumulative_length = places[0].clone()
            if place in self.attending:  # the exporter follows buffers of the module, and no other tensors
                layer.keys, layer.values = getattr(self, f"keys_{place}"), getattr(self, f"values_{place}")
        given: dict[str, Any] = {self.argument: self.cache, "use_cache": True}
        if self.placed:
            given["position_ids"] = places[None].expand(input_ids.shape[0], -1)
        logits: torch.Tensor = self.model(input_ids=input_ids, **given).logits
        return logits


def write_static(model: nn.Module, path: Path, batch: int, positions: int) -> StaticShape:
    """Export the model; returns what it keeps of each token.

    Args:
        batch: texts at a time.
        positions: tokens that there is room for.

    Raises:
        UsageError: its cache is something else than keys and values, or PyTorch can't export it.
        RunError: it can't be written.
    """
    shape = cache_shape(model)
    free = torch.export.Dim.DYNAMIC
    count = 5  # no size that a model has by chance, and that torch.export takes for a constant
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                WithStaticCache(model, batch, positions), (torch.zeros(batch, count, dtype=torch.int64), torch.arange(count)),
                dynamic_shapes=({1: free}, {0: free}), strict=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises what torch.export does
        raise UsageError(f"{type(model).__name__} with a static cache can't be exported: {described(error)}") from error
    for node in list(program.graph.nodes):  # they hold the program to the types that it was exported in
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    try:
        torch.export.save(program, partial)
        partial.replace(path)
    except Exception as error:  # torch raises what its archive does: a full disk, mostly
        raise RunError(f"{path} can't be written: {described(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
    return StaticShape(shape.heads, shape.sizes)


@torch.no_grad()
def check_static(path: Path, model: nn.Module, ids: torch.Tensor, batch: int = 1) -> None:
    """Run the program: half of a text, one token, then the rest; and once more, as the next text finds it.

    Args:
        ids: (1, tokens) of text.
        batch: texts at a time that it was written for.
        model: in the type of the program.

    Raises:
        RunError: it computes something else than the model.
    """
    wanted = model(input_ids=ids, use_cache=False).logits.float()
    tolerance = TOLERANCE if next(model.parameters()).dtype == torch.float32 else ROUNDED
    half, count = ids.shape[1] // 2, ids.shape[1]
    parts = [(start, end) for start, end in ((0, half), (half, half + 1), (half + 1, count)) if start < end]
    try:
        program = torch.export.load(path).module(check_guards=False)
        given = ids.expand(batch, -1)
        found = [
            torch.cat([program(given[:, start:end], torch.arange(start, end)) for start, end in parts], dim=1) for _ in range(2)
        ]
    except Exception as error:  # a program raises what its operators do
        raise RunError(f"{path} does not run: {described(error)}") from error
    for logits in found:
        difference = float((logits.float() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        if not difference <= tolerance:
            raise RunError(f"{path} computes something else than the model (difference {difference:.2g} of the largest logit)")


def static_file(
    model: nn.Module, path: Path, ids: torch.Tensor, positions: int, batch: int = 1, precision: str = "fp32"
) -> tuple[Path, StaticShape]:
    """Write the program and check it with (1, tokens) of text; the model is in that precision afterwards."""
    model = model.to(TYPES[precision])
    shape = write_static(model, path, batch, positions)
    try:
        check_static(path, model, ids[:, :positions], batch)
    except BaseException:
        path.unlink()
        raise
    return path, shape


class StaticWriter:
    """Writes models of one class whose blocks are of any sizes, as `Assembler` does for ONNX.

    Args:
        folder: the dense model; what is not in blocks is taken from it.
        lengths: see `Uneven`.
        positions: tokens that there is room for.
        precision: in which programs run.
    """

    suffix = ".pt2"

    def __init__(
        self, folder: LanguageFolder, lengths: Mapping[str, int], batch: int, positions: int, precision: str = "fp32"
    ) -> None:
        self._type = TYPES[precision]
        self._folder, self._lengths, self._batch, self._positions = folder, lengths, batch, positions
        self._others = {name: x.float() for name, x in folder.load(folder.other_tensors()).items()}

    def write(self, blocks: Sequence[Mapping[str, torch.Tensor]], path: Path) -> StaticShape:
        """Write the model with these blocks (parameter -> tensor). Raises `UsageError`."""
        return write_static(self.model(blocks).to(self._type), path, self._batch, self._positions)

    def model(self, blocks: Sequence[Mapping[str, torch.Tensor]]) -> nn.Module:
        """The model with these blocks."""
        folder, config = self._folder, copy.deepcopy(self._folder.config)
        if folder.uneven:
            delattr(config, UNEVEN)
        shapes = [{name: tuple(x.shape) for name, x in block.items()} for block in blocks]
        config = Uneven(folder.kind, folder.blocks, shapes, self._lengths).config(config)
        made = skeleton(folder.kind, config)
        fill(made, self._others)
        for layer, block in zip(made.get_submodule(folder.blocks).children(), blocks, strict=True):
            known = {name for name, _ in layer.named_parameters()}
            fill(layer, {name: x.detach().float() for name, x in block.items() if name in known})
        if getattr(config, "tie_word_embeddings", False):
            made.tie_weights()  # type: ignore[operator]
        return made.eval()

    def check(self, path: Path, model: nn.Module, ids: torch.Tensor) -> None:
        """See `check_static`."""
        check_static(path, model.to(self._type), ids[:, : self._positions], self._batch)


@torch.no_grad()
def _kept(model: nn.Module, argument: str) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Keys and values of each layer of the cache; None: it does not attend."""
    from transformers import DynamicCache

    given = {argument: DynamicCache(), "use_cache": True}
    layers = model(input_ids=torch.zeros(1, 3, dtype=torch.int64), **given).past_key_values.layers
    return [(layer.keys, layer.values) if getattr(layer, "keys", None) is not None else None for layer in layers]
