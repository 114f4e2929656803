"""Which positions of token models matter: padding is computed everywhere and used nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from hwprune.layers import layer as layer_table
from hwprune.layers.layer import Layer
from hwprune.workload.workload import Inputs


def relevance(
    module: fx.GraphModule, by_node: Mapping[str, Layer], sharing: Mapping[str, Sequence[str]], inputs: Inputs
) -> dict[str, torch.Tensor]:
    """Positions of layers whose outputs have any effect on the model's outputs; bool, as `Layer.patches` has them.

    Of token models: a padding token is computed everywhere and used nowhere, and would fill the Gram matrices with what does not
    matter. The gradient of a random projection of the outputs is exactly zero there.

    Args:
        sharing: node -> nodes that read the same input; a position matters if it does to one of them. Nodes of which nothing is
            known are left out of the result.
    """
    probes: dict[str, torch.Tensor] = {}

    def visit(name: str, _arguments: tuple[Any, ...], result: Any) -> Any:
        probes[name] = torch.zeros_like(result, requires_grad=True)
        return result + probes[name]

    with torch.enable_grad():
        output = layer_table.run(module, inputs, [node for nodes in sharing.values() for node in nodes], visit)
        leaves = [
            leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        if not leaves:
            return {}
        generator = torch.Generator().manual_seed(0)
        total = torch.stack(
            [(leaf * torch.randn(leaf.shape, generator=generator).to(leaf)).sum().float() for leaf in leaves]
        ).sum()
        gradients = dict(zip(probes, torch.autograd.grad(total, list(probes.values()), allow_unused=True), strict=True))
    masks = {}
    for first, nodes in sharing.items():
        by_reader = [by_node[node].matters(gradient) for node in nodes if (gradient := gradients.get(node)) is not None]
        if by_reader and bool((mask := torch.stack(by_reader).any(dim=0)).any()):
            masks[first] = mask
    return masks
