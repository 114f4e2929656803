"""Losses against the dense model: its answers, and its inner outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx


def logits(
    found: torch.Tensor, wanted: torch.Tensor, axis: int | None, temperature: float, variance: float = 1.0
) -> torch.Tensor:
    """T^2 KL(teacher || student) of the softened distributions, a mean over positions (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        axis: of the classes; None: outputs are no distribution, and the squared error as a share of ``variance`` is taken.
        variance: of the teacher's outputs over the data, not over this batch, which may hold one example.
    """
    if axis is None:
        error: torch.Tensor = (found - wanted).square().mean() / max(variance, 1e-12)
        return error
    student = (found.float() / temperature).log_softmax(dim=axis)
    teacher = (wanted.float() / temperature).log_softmax(dim=axis)
    each = (teacher.exp() * (teacher - student)).sum(dim=axis)
    return temperature**2 * each.mean()


def features(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared distance of inner outputs, each as a share of the teacher's mean square, so that no layer outweighs another.

    Of a transformer each token counts by itself (ZipLM, Kurtic et al. 2023, arXiv 2302.04089, token-wise loss).
    """
    parts = [(a - b).square().mean() / b.square().mean().clamp(min=1e-12) for a, b in zip(found, wanted, strict=True)]
    return torch.stack(parts).mean()


def tapped(module: fx.GraphModule, nodes: Sequence[str]) -> fx.GraphModule:
    """The model with its answer and the outputs of some nodes: (answer, (value, ...)). Parameters are shared."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    answer = graph.graph_copy(module.graph, copied)
    by_name = {node.name: node for node in module.graph.nodes}
    graph.output((answer, tuple(copied[by_name[name]] for name in nodes)))
    return fx.GraphModule(module, graph)


def shared_nodes(
    student: fx.GraphModule, teacher: fx.GraphModule, inputs: tuple[torch.Tensor, ...], nodes: Sequence[str]
) -> list[str]:
    """The nodes among ``nodes`` that both models have with outputs of one shape: where nothing of the stream itself was cut."""
    there = {node.name for node in student.graph.nodes} & {node.name for node in teacher.graph.nodes}
    names = [name for name in nodes if name in there]
    if not names:
        return []
    with torch.no_grad():
        _, mine = tapped(student, names)(*inputs)
        _, other = tapped(teacher, names)(*inputs)
    return [
        name
        for name, a, b in zip(names, mine, other, strict=True)
        if isinstance(a, torch.Tensor) and a.shape == b.shape and a.is_floating_point()
    ]
