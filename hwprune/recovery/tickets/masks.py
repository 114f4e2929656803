"""Masks of tickets: initial, pruned by magnitude, random with the same sparsity."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import fx, nn

from hwprune.recovery.tickets.course import State


def initial(model: nn.Module, graph: fx.GraphModule, seed: int) -> State:
    """A traced model's state with new initial values: each layer's own `reset_parameters`.

    Parameters that belong to no layer with such a method (a position embedding, a class token, a norm of one's own) are drawn
    from a normal distribution with mean and deviation of the trained ones; scalars keep their values.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        initialised: set[int] = set()
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
                initialised |= {id(p) for p in layer.parameters(recurse=False)}
        for parameter in fresh.parameters():
            if id(parameter) not in initialised and parameter.is_floating_point() and parameter.numel() > 1:
                parameter.normal_(float(parameter.mean()), float(parameter.std()))
    state = fresh.state_dict()
    return {name: state[name].detach().clone() if name in state else value.clone() for name, value in graph.state_dict().items()}


@torch.no_grad()
def pruned(module: nn.Module, masks: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Remove a share of the weights that are left, the smallest of all layers together; each layer keeps one at least."""
    parameters = dict(module.named_parameters())
    left = torch.cat([parameters[name].detach().abs()[mask] for name, mask in masks.items()])
    count = round(share * len(left))
    threshold = left.kthvalue(max(1, count)).values
    kept = {}
    for name, mask in masks.items():
        weight = parameters[name].detach().abs()
        keep = mask & (weight > threshold) if count else mask.clone()
        if not bool(keep.any()):
            keep[torch.unravel_index((weight * mask).argmax(), keep.shape)] = True
        kept[name] = keep
    return kept


def random_like(masks: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Masks with as many weights in each layer, anywhere in it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.reshape(-1)[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in masks.items()
    }
