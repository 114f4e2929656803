"""A language model's folder as one ONNX file with a cache: prompts and single tokens, with the names that Optimum uses.

Inputs are ``input_ids`` (batch, sequence) and, of every layer, ``past_key_values.I.key`` and ``.value`` (batch, heads, past, size
of a head); outputs are ``logits`` and ``present.I.key``, ``.value``, which go in as the past of the next token. A prompt has a
past of length 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from hwprune.errors import RunError, UsageError, described
from hwprune.onnx_files import tidy
from hwprune.onnx_files.attention_form import simplify_decoder_attention
from hwprune.onnx_files.interface_names import BATCH, LENGTH
from hwprune.onnx_files.to_onnx import OPSET, save_onnx
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sublayers import silence_zeros

PAST, PRESENT = "past_key_values", "present"
PAST_LENGTH = "past_sequence"
TOLERANCE = 1e-3
"""Largest difference of logits between ONNX Runtime and PyTorch, over the largest logit."""
GENERATED = 8
"""Tokens that must be the same in ONNX Runtime and in PyTorch."""
_EXAMPLE = (2, 5, 3)
"""Batch, tokens and past of the export: sizes that no model has by chance, and that torch.export does not take for constants."""


class WithCache(nn.Module):
    """(tokens, keys and values of earlier tokens, layer by layer) -> (logits, keys and values of all tokens)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.argument = next((name for name in ("past_key_values", "cache") if name in takes), "")

    def forward(self, input_ids: torch.Tensor, past: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        from transformers import DynamicCache

        pairs = [(past[place], past[place + 1]) for place in range(0, len(past), 2)]
        given = {self.argument: DynamicCache(ddp_cache_data=pairs), "use_cache": True}
        made = self.model(input_ids=input_ids, **given)
        return (made.logits, *_tensors(made.past_key_values))


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of what is kept of each token.

    Attributes:
        heads, sizes: of keys and values in turn: heads, and numbers a head.
    """

    heads: tuple[int, ...]
    sizes: tuple[int, ...]

    def empty(self, batch: int, past: int) -> list[np.ndarray[Any, Any]]:
        """Zeros for so many earlier tokens."""
        return [np.zeros((batch, heads, past, size), np.float32) for heads, size in zip(self.heads, self.sizes, strict=True)]

    def inputs(self, batch: int, count: int, past: int) -> list[np.ndarray[Any, Any]]:
        """What the file takes for so many new tokens after so many earlier ones."""
        return [np.ones((batch, count), np.int64), *self.empty(batch, past)]

    @classmethod
    def of_file(cls, path: Path) -> CacheShape:
        """What a file says."""
        graph = onnx.load(str(path), load_external_data=False).graph
        dims = [item.type.tensor_type.shape.dim for item in graph.input if item.name.startswith(PAST)]
        return cls(tuple(int(one[1].dim_value) for one in dims), tuple(int(one[3].dim_value) for one in dims))

    @property
    def bytes_per_token(self) -> int:
        """In 32 bits."""
        return 4 * sum(heads * size for heads, size in zip(self.heads, self.sizes, strict=True))


def loaded(folder: Path) -> nn.Module:
    """The model in 32 bits, as its user loads it, but for attention and MLPs whose weights are zero: they are left out."""
    opened = LanguageFolder(folder)
    model = opened.whole()
    if not opened.uneven:
        silence_zeros(model, opened.blocks)
    return model


@torch.no_grad()
def cache_shape(model: nn.Module) -> CacheShape:
    """What the model keeps of each token.

    Raises:
        UsageError: something else than keys and values of each layer, as a state-space model does.
    """
    name = type(model).__name__
    ids = torch.zeros(1, 3, dtype=torch.int64)
    try:
        kept = _tensors(model(input_ids=ids, use_cache=True).past_key_values)
    except Exception as error:  # the class has another cache, or none
        raise UsageError(f"{name} keeps something else than keys and values of each token: {described(error)}") from error
    if not kept or any(x.ndim != 4 or x.shape[:3:2] != (1, 3) for x in kept):
        raise UsageError(f"{name} keeps something else than keys and values of each token: no ONNX file with a cache")
    return CacheShape(tuple(x.shape[1] for x in kept), tuple(x.shape[3] for x in kept))


def write_cached_onnx(model: nn.Module, shape: CacheShape, path: Path) -> Path:
    """Export.

    Raises:
        UsageError: PyTorch can't export the model.
    """
    return save_onnx(exported(model, shape), path)


def exported(model: nn.Module, shape: CacheShape) -> onnx.ModelProto:
    """The model as ONNX, in memory. Raises `UsageError`: PyTorch can't export it."""
    batch, tokens, past = _EXAMPLE
    ids = torch.zeros(batch, tokens, dtype=torch.int64)
    earlier = [torch.from_numpy(x) for x in shape.empty(batch, past)]
    free = torch.export.Dim.DYNAMIC
    names = [f"{place // 2}.{'value' if place % 2 else 'key'}" for place in range(len(earlier))]
    try:
        with tidy.quiet(), torch.no_grad():
            program = torch.export.export(
                WithCache(model), (ids, earlier), strict=False,
                dynamic_shapes={"input_ids": {0: free, 1: free}, "past": [{0: free, 2: free} for _ in earlier]},
            )  # fmt: skip
            made = torch.onnx.export(
                program, (), dynamo=True, verbose=False, opset_version=OPSET, optimize=True,
                input_names=["input_ids", *(f"{PAST}.{name}" for name in names)],
                output_names=["logits", *(f"{PRESENT}.{name}" for name in names)],
            )  # fmt: skip
    except Exception as error:  # the exporter raises what torch.export and onnxscript raise
        raise UsageError(f"{type(model).__name__} with its cache can't be exported: {described(error)}") from error
    assert made is not None  # None only for the deprecated exporter
    proto = made.model_proto
    _name_dims(proto)
    tidy.strip(proto)
    simplify_decoder_attention(proto)
    return proto


@torch.no_grad()
def check_cached_onnx(path: Path, model: nn.Module, shape: CacheShape, ids: torch.Tensor) -> None:
    """Run it in ONNX Runtime: a prompt, then token by token.

    Args:
        ids: (1, tokens) of text.

    Raises:
        RunError: logits, or the tokens that follow, are others than PyTorch's.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    half = ids.shape[1] // 2
    wanted = model(input_ids=ids, use_cache=False).logits.numpy()
    first = session.run(None, dict(zip(names, [ids[:, :half].numpy(), *shape.empty(1, 0)], strict=True)))
    second = session.run(None, dict(zip(names, [ids[:, half:].numpy(), *first[1:]], strict=True)))
    found = np.concatenate([first[0], second[0]], axis=1)
    difference = float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
    if not difference <= TOLERANCE:
        raise RunError(f"{path} computes something else than the model (difference {difference:.2g} of the largest logit)")
    written, kept, tokens = ids[:, :half].numpy(), shape.empty(1, 0), ids[:, :half].numpy()
    for _ in range(GENERATED):
        logits, *kept = session.run(None, dict(zip(names, [tokens, *kept], strict=True)))
        tokens = logits[:, -1:].argmax(-1)
        wanted = model(input_ids=torch.from_numpy(written), use_cache=False).logits[:, -1].numpy()
        # Two words that PyTorch itself can't tell apart may follow in either order.
        if wanted.max() - wanted[0, tokens[0, 0]] > TOLERANCE * np.abs(wanted).max():
            raise RunError(f"{path} goes on with another token than the model, after {written.shape[1]} tokens")
        written = np.concatenate([written, tokens], axis=1)


def _tensors(cache: Any) -> list[torch.Tensor]:
    """Keys and values in turn; layers that don't attend have none."""
    return [x for layer in cache.layers if getattr(layer, "keys", None) is not None for x in (layer.keys, layer.values)]


def _name_dims(model: onnx.ModelProto) -> None:
    """One name for each free size, of inputs and outputs."""
    for item in (*model.graph.input, *model.graph.output):
        dims = item.type.tensor_type.shape.dim
        dims[0].dim_param = BATCH
        if item.name in ("input_ids", "logits"):
            dims[1].dim_param = LENGTH
        else:
            dims[2].dim_param = PAST_LENGTH if item.name.startswith(PAST) else f"{PAST_LENGTH} + {LENGTH}"
    del model.graph.value_info[:]
