"""The proof that a cut model computes what the masked one computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import fx

from hwprune.errors import CandidateFailure, RunError, described
from hwprune.pruning.candidate import Candidate
from hwprune.structure.model_graph import ModelGraph
from hwprune.workload.workload import all_tensors

ORDER_TOLERANCE = 1e-4
"""Largest difference that another order of channels may make, by rounding alone."""
CUT_TOLERANCE = 1e-5
"""Largest difference between cut and masked outputs, relative to the largest output, in float32."""
CUT_TOLERANCE_DOUBLE = 1e-9
"""The largest difference in float64, asked only when float32 rounding leaves a doubt."""


@torch.no_grad()
def relative_difference(a: torch.nn.Module, b: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """The largest difference of any output, relative to the largest entry of that output."""
    return _difference(all_tensors(a(*inputs)), all_tensors(b(*inputs)))


def _difference(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> float:
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        if not one.numel() and one.shape == other.shape:
            continue
        difference = float((one.double() - other.double()).abs().max()) / max(float(other.double().abs().max()), 1e-30)
        worst = difference if not difference <= worst else worst  # so that NaN counts
    return worst


def check_cut(graph: ModelGraph, candidate: Candidate) -> float:
    """Compare the cut with the masked model on the example inputs; returns the relative difference.

    Both are taken before masks and compensation. Axes that are not exact are left out.

    Raises:
        RunError: they differ: a wrong rule. hwprune never goes on with a wrong cut.
    """
    tokens = {axis.name for axis in graph.token_axes}
    keeps = {name: keep for name, keep in candidate.keeps.items() if name not in tokens and graph.axis(name).exact}
    if not keeps and not candidate.drop:
        return 0.0
    cut, masked = graph.cut(keeps, candidate.drop), graph.mask(keeps, candidate.drop)
    inputs = candidate.example_inputs
    difference = relative_difference(cut, masked, inputs)
    if not difference <= CUT_TOLERANCE:  # so that NaN counts as different
        double = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        try:
            difference, allowed = relative_difference(cut.double(), masked.double(), double), CUT_TOLERANCE_DOUBLE
        except RuntimeError:  # a model that names float32 inside can't run in float64
            allowed = 10 * CUT_TOLERANCE
        if not difference <= allowed:
            raise RunError(
                f"the cut model differs from the masked one by {difference:.2g} (relative). This is a bug in a rule of "
                f"hwprune.structure.torch.rules; please report it. Axes: {', '.join(keeps)}"
            )
    return difference


@torch.no_grad()
def check_runs(module: fx.GraphModule, inputs: tuple[torch.Tensor, ...], cuts: Collection[str]) -> None:
    """Run a cut model once, so that nobody is given one that crashes.

    Args:
        cuts: what was cut, for the message.

    Raises:
        CandidateFailure: it does not run.
    """
    try:
        module(*inputs)
    except Exception as error:  # whatever its operators raise
        raise CandidateFailure(
            "prune",
            f"the model does not run with a cut of {', '.join(cuts)}: {described(error)}. This is a bug in a rule of "
            "hwprune.structure.torch.rules; please report it. Leave the unit out meanwhile",
        ) from error


def reorder_checked(
    graph: ModelGraph,
    module: fx.GraphModule,
    keeps: Mapping[str, torch.Tensor],
    orders: Mapping[str, torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
) -> None:
    """Reorder axes, and check that the model still computes the same. Raises `RunError` if not."""
    with torch.no_grad():
        before = all_tensors(module(*inputs))
        graph.reorder(module, keeps, orders)
        after = all_tensors(module(*inputs))
    difference = _difference(after, before)
    if not difference <= ORDER_TOLERANCE:
        raise RunError(
            f"with {', '.join(orders)} in another order the model differs by {difference:.2g} (relative). "
            "This is a bug in a rule of hwprune.structure.torch.rules; please report it"
        )
