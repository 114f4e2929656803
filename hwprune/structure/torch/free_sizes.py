"""Sizes that an exported model leaves free: the batch, and the number of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn


def has_free_batch(module: fx.GraphModule) -> bool:
    """Does the captured graph run at any batch size?"""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.ndim:
            batch = value.shape[0]
            if isinstance(batch, torch.SymInt) and batch.node.expr.free_symbols:  # a specialised one has none left
                return True
    return False


def has_free_length(module: fx.GraphModule) -> bool:
    """Does the captured graph run at any number of tokens?"""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    tokens = [value for value in values if isinstance(value, torch.Tensor) and _holds_tokens(value)]
    return bool(tokens) and all(
        isinstance(value.shape[1], torch.SymInt) and value.shape[1].node.expr.free_symbols for value in tokens
    )


def length_symbols(module: fx.GraphModule) -> dict[Any, int]:
    """The free number of tokens of a captured graph -> the one of its example inputs; empty where it is not free."""
    length = module.meta.get("length")
    if not module.meta.get("free_length") or not length:
        return {}
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return {
        symbol: int(length)
        for value in values
        if isinstance(value, torch.Tensor) and _holds_tokens(value)
        for symbol in value.shape[1].node.expr.free_symbols  # type: ignore[attr-defined]  # a SymInt
    }


def symbols_of(size: object) -> set[object]:
    """The free sizes that a size is computed of; none of a plain number.

    As they were recorded: whoever compares a size with a number later lets PyTorch replace its symbols by numbers.
    """
    return set(size.node._expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def batch_symbols(module: fx.GraphModule) -> set[object]:
    """The free sizes of the inputs' first dims."""
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return {symbol for value in values if isinstance(value, torch.Tensor) and value.ndim for symbol in symbols_of(value.shape[0])}


def has_tokens(inputs: Sequence[torch.Tensor]) -> bool:
    """Are (batch, tokens) whole numbers among the inputs, all of one length?"""
    lengths = {x.shape[1] for x in inputs if _holds_tokens(x)}
    return len(lengths) == 1 and lengths.pop() > 1  # torch.export specialises 1


def _holds_tokens(x: torch.Tensor) -> bool:
    return x.ndim == 2 and not x.is_floating_point() and not x.is_complex()


def free_batch(model: nn.Module, inputs: Sequence[torch.Tensor], *, length: bool = False) -> tuple[tuple[torch.Tensor, ...], Any]:
    """(inputs to trace with, dynamic_shapes) that leave the first dim free, and with ``length`` the number of tokens.

    torch.export specialises a batch of 1, so it is doubled; but not where only some inputs have a first dim of 1 (then
    it is no batch).
    """
    tensors = tuple(inputs)
    if all(x.shape[0] == 1 for x in tensors if x.ndim):
        tensors = tuple(torch.cat([x, x]) if x.ndim else x for x in tensors)
    free = torch.export.Dim.AUTO
    shapes: tuple[Any, ...] = tuple(
        ({0: free, 1: free} if length and _holds_tokens(x) else {0: free}) if x.ndim else None for x in tensors
    )
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    packed = kinds and kinds[0] == inspect.Parameter.VAR_POSITIONAL
    return tensors, (shapes,) if packed else shapes
