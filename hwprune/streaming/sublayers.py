"""The two residual branches of a block, attention and MLP: which module each is, and a block without one.

A model without some of its attention loses little, and keeps no keys and values there (He et al. 2024, "What matters in
transformers? Not all attention is needed", arXiv 2406.15786).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hwprune.errors import RunError, UsageError
from hwprune.streaming.blocks import DecoderBlock
from hwprune.streaming.uneven_model import Silent

ATTENTION, MLP = "attention", "mlp"
KINDS = (ATTENTION, MLP)
_OF_ATTENTION = frozenset({"attention_mask", "position_embeddings", "past_key_values", "layer_past", "alibi"})
"""Arguments that tell a module which attends from others."""
SAME = 1e-4
"""Largest difference between what enters and what leaves a block without branches, over the largest number that enters."""


def names_of(layer: nn.Module) -> dict[str, str]:
    """Kind -> name of the module in a block that is this branch.

    Raises:
        UsageError: a branch is no module of its own, or there are several of a kind.
    """
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name, child in layer.named_children():
        if any(x.ndim >= 2 for x in child.parameters()):
            takes = inspect.signature(child.forward).parameters
            found[ATTENTION if _OF_ATTENTION & takes.keys() else MLP].append(name)
    if any(len(names) != 1 for names in found.values()):
        told = "; ".join(f"{kind}: {', '.join(names) or 'none'}" for kind, names in found.items())
        raise UsageError(f"attention and MLP of {type(layer).__name__} are not one module each ({told}): they can't be dropped")
    return {kind: names[0] for kind, names in found.items()}


@torch.no_grad()
def silence(block: DecoderBlock, kinds: Sequence[str], hidden: torch.Tensor) -> None:
    """Take branches out of a block.

    Args:
        hidden: (1, tokens, width), something that may enter it.

    Raises:
        UsageError: attention and MLP are not what the block adds to what enters it.
    """
    names = names_of(block.layer)
    were = {kind: block.layer.get_submodule(name) for kind, name in names.items()}
    lengths = _lengths(were, lambda: block(hidden))
    for kind, name in names.items():
        setattr(block.layer, name, Silent(lengths[kind]))
    left = block(hidden)
    if not float((left - hidden).abs().max()) <= SAME * float(hidden.abs().max()):
        raise UsageError(
            f"{type(block.layer).__name__} adds more than attention and MLP to what enters it: they can't be dropped"
        )
    for kind, name in names.items():
        if kind not in kinds:
            setattr(block.layer, name, were[kind])


@torch.no_grad()
def lengths_of(block: DecoderBlock, hidden: torch.Tensor) -> dict[str, int]:
    """Name of each branch's module -> length of the tuple that it gives; 0: a tensor. None where `names_of` fails.

    Args:
        hidden: (1, tokens, width), something that may enter the block.
    """
    try:
        names = names_of(block.layer).values()
    except UsageError:
        return {}
    return _lengths({name: block.layer.get_submodule(name) for name in names}, lambda: block(hidden))


@torch.no_grad()
def silence_zeros(model: nn.Module, blocks: str) -> int:
    """Take those branches out of a whole model whose weights are all zero; returns how many.

    What attends still is numbered anew, so that a cache has no places for what is gone.

    Args:
        blocks: name of the list of blocks.

    Raises:
        RunError: the model computes something else then.
    """
    layers = list(model.get_submodule(blocks).children())
    gone: dict[tuple[int, str], str] = {}
    for index, layer in enumerate(layers):
        for name, child in layer.named_children():
            matrices = [x for x in child.parameters() if x.ndim >= 2]
            if matrices and not any(bool(x.any()) for x in matrices):
                gone |= {(index, kind): place for kind, place in names_of(layer).items() if place == name}
    if not gone:
        return 0
    ids = torch.arange(3)[None]
    before = model(input_ids=ids, use_cache=False).logits
    were = {key: layers[key[0]].get_submodule(name) for key, name in gone.items()}
    lengths = _lengths(were, lambda: model(input_ids=ids, use_cache=False))
    for (index, kind), name in gone.items():
        setattr(layers[index], name, Silent(lengths[index, kind]))
    number = 0
    for index, layer in enumerate(layers):
        if (index, ATTENTION) not in gone:
            for part in layer.modules():
                if isinstance(getattr(part, "layer_idx", None), int):
                    part.layer_idx = number  # type: ignore[assignment]
            number += 1
    after = model(input_ids=ids, use_cache=False).logits
    if not float((after - before).abs().max()) <= SAME * float(before.abs().max()):
        raise RunError(f"{type(model).__name__} computes something else without the branches whose weights are zero")
    return len(gone)


def _lengths(modules: Mapping[Any, nn.Module], run: Callable[[], object]) -> dict[Any, int]:
    """Lengths of the tuples that modules give in a run; 0: a tensor."""
    found: dict[Any, int] = {}

    def noting(key: Any) -> Any:
        def note(_module: nn.Module, _given: Any, made: Any) -> None:
            found[key] = len(made) if isinstance(made, tuple) else 0

        return note

    handles = [module.register_forward_hook(noting(key)) for key, module in modules.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
