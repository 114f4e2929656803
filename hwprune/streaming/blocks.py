"""One block of a language model as a module of hidden states alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hwprune.errors import WorkloadError
from hwprune.streaming.folder import LanguageFolder, fill
from hwprune.streaming.uneven_model import Silent, tell_sizes

_CACHES = ("past_key_values", "past_key_value", "cache", "use_cache", "layer_past")


class DecoderBlock(nn.Module):
    """A block: (1, tokens, width) hidden states -> the same.

    Args:
        layer: the block of the user's class.
        given: what the model passes to it besides: masks, positions. It is the same for all windows of one length.
    """

    def __init__(self, layer: nn.Module, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.given = {key: value for key, value in given.items() if key not in _CACHES}
        for key, value in self.given.items():
            for place, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
                if isinstance(tensor, torch.Tensor):
                    self.register_buffer(f"{key}_{place}", tensor, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = {}
        for key, value in self.given.items():
            parts = [
                getattr(self, f"{key}_{place}") if isinstance(x, torch.Tensor) else x
                for place, x in enumerate(value if isinstance(value, tuple) else (value,))
            ]
            given[key] = tuple(parts) if isinstance(value, tuple) else parts[0]
        made = self.layer(hidden, **given)
        result: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return result


class _Reached(Exception):  # noqa: N818 - no error: the last block was reached
    pass


@torch.no_grad()
def entering(ends: nn.Module, blocks: str, ids: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """What reaches the first block, and what each block is given besides.

    Args:
        ends: `LanguageFolder.ends`.
        blocks: name of the list of blocks.
        ids: (1, tokens).

    Raises:
        WorkloadError: blocks are called in a way that isn't known here.
    """
    layers = list(ends.get_submodule(blocks).children())
    seen: list[tuple[torch.Tensor, dict[str, Any]]] = []

    takes = [name for name in inspect.signature(type(layers[0]).forward).parameters if name != "self"]

    def called(hidden: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if len(rest) >= len(takes):
            raise WorkloadError(f"the blocks of {type(ends).__name__} take arguments by position that have no names")
        seen.append((hidden, named | dict(zip(takes[1:], rest, strict=False))))
        if len(seen) == len(layers):
            raise _Reached
        return hidden

    for layer in layers:
        layer.forward = called
    try:
        ends(ids, use_cache=False)
    except _Reached:
        return seen[0][0], [named for _, named in seen]
    finally:
        for layer in layers:
            del layer.forward
    raise WorkloadError(f"{type(ends).__name__} does not call each of its {len(layers)} blocks once")


@torch.no_grad()
def leaving(ends: nn.Module, blocks: str, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`logits_of` without gradients."""
    return logits_of(ends, blocks, ids, hidden)


def logits_of(ends: nn.Module, blocks: str, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (1, tokens, words) of what the last block has made; gradients reach ``hidden``.

    Raises:
        WorkloadError: the model makes nothing of it.
    """
    layers = list(ends.get_submodule(blocks).children())
    # Some classes take a block's result as it is, others the first entry of it. Annotations are not always true.
    told = "uple" in str(getattr(type(layers[0]).forward, "__annotations__", {}).get("return", ""))
    failure: Exception | None = None
    for as_tuple in (told, not told):
        made = (hidden,) if as_tuple else hidden
        for layer in layers:
            layer.forward = lambda *_rest, made=made, **_named: made
        try:
            logits = ends(ids, use_cache=False).logits
        except Exception as error:  # an index too many, or a tuple where a tensor is wanted
            failure = error
            continue
        finally:
            for layer in layers:
                del layer.forward
        if logits.shape[:2] == ids.shape and logits.ndim == 3:
            return logits  # type: ignore[no-any-return]
    raise WorkloadError(f"{type(ends).__name__} makes no logits of its last block's result") from failure


def block_of(folder: LanguageFolder, index: int, given: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> DecoderBlock:
    """A block with its weights and what the model gives it."""
    return DecoderBlock(folder.block(index, dtype), given).eval()


def with_tensors(block: DecoderBlock, tensors: Mapping[str, torch.Tensor], lengths: Mapping[str, int]) -> DecoderBlock:
    """A block of the same class with other tensors, of other sizes perhaps.

    Args:
        tensors: parameter -> tensor. Branches of which there are none are gone.
        lengths: see `uneven.Uneven`.
    """
    layer = copy.deepcopy(block.layer)
    for name, length in lengths.items():
        if not any(key.startswith(f"{name}.") for key in tensors):
            setattr(layer, name, Silent(length))
    fill(layer, tensors)
    tell_sizes(layer)
    return DecoderBlock(layer, block.given).eval()
