"""Blocks of sizes of their own in a class of transformers, which knows one size for all blocks.

This file needs nothing of hwprune: a copy of it lies in each folder whose blocks are uneven, and a class of the model's own
follows there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Silent(nn.Module):
    """In the place of a branch that is gone: zeros, in the form in which the branch gave its result.

    Args:
        length: of the tuple; 0: the branch gave a tensor.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, *given: Any, **named: Any) -> Any:
        hidden = next(x for x in (*given, named.get("hidden_states"), *named.values()) if isinstance(x, torch.Tensor))
        nothing = torch.zeros_like(hidden)
        return (nothing, *[None] * (self.length - 1)) if self.length else nothing


def resize(model: nn.Module, uneven: dict[str, Any]) -> nn.Module:
    """Give each block its own sizes; returns the model.

    Args:
        model: with blocks of one size; parameters that get another shape lose their numbers.
        uneven: ``blocks`` (name of the list of blocks), ``shapes`` (of each block: parameter -> shape, where it is another),
            ``gone`` (of each block: module -> length of the tuple that it gave, 0 for a tensor).
    """
    layers = list(model.get_submodule(uneven["blocks"]).children())
    attends = []
    for layer, shapes, gone in zip(layers, uneven["shapes"], uneven["gone"], strict=True):
        for name, shape in shapes.items():
            owner, _, last = name.rpartition(".")
            old = layer.get_parameter(name)
            new = torch.empty(tuple(shape), dtype=old.dtype, device=old.device)
            setattr(layer.get_submodule(owner), last, nn.Parameter(new, requires_grad=old.requires_grad))
        tell_sizes(layer)
        attends.append(not any(_numbered(layer.get_submodule(name)) for name in gone))
        for name, length in gone.items():
            owner, _, last = name.rpartition(".")
            setattr(layer.get_submodule(owner), last, Silent(length))
    kinds = set(getattr(getattr(model, "config", None), "layer_types", None) or [])
    if len(kinds) <= 1:  # where some blocks look back less far than others, a cache has a place for each block
        _number_anew(layers, attends)
    return model


def tell_sizes(layer: nn.Module) -> None:
    """Let modules know their new sizes where they have noted the old ones."""
    for part in layer.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Linear) and weight is not None:
            part.out_features, part.in_features = weight.shape
        queries, keys = getattr(part, "q_proj", None), getattr(part, "k_proj", None)
        if isinstance(queries, nn.Linear) and isinstance(keys, nn.Linear) and hasattr(part, "num_key_value_groups"):
            part.num_key_value_groups = len(queries.weight) // len(keys.weight)  # type: ignore[assignment]


def _numbered(module: nn.Module) -> list[nn.Module]:
    """The parts that know their place in a cache."""
    return [part for part in module.modules() if isinstance(getattr(part, "layer_idx", None), int)]


def _number_anew(layers: list[nn.Module], attends: list[bool]) -> None:
    """A cache's places, without any for blocks that don't attend: its length is that of the first place."""
    for place, layer in enumerate(layers):
        for part in _numbered(layer):
            part.layer_idx = sum(attends[:place])  # type: ignore[assignment]
