"""How close two sets of outputs are: one rule for files, modules and runtimes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0}
"""Largest relative difference that rounding explains, by the precision in which a file is run."""
FLOOR = 0.01
"""Outputs whose largest entry is below it are compared as if that were it: what passes inside a model is of the size of 1, and
the rounding of a sum that comes out near zero is relative to its terms. A judgement: 1e-6 in fp32."""
SPARED = 0.02
"""Share of the examples that may come out otherwise where a model chooses its tokens. A judgement: of neighbours in the order of
tokens one pair in some ten thousand is equal but for the rounding of another kernel."""
FEWEST_SPARED = 4
KINDS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def spared(examples: int) -> int:
    """How many of so many examples may come out otherwise where a model chooses its tokens: two are equal but for rounding."""
    return max(1, math.ceil(SPARED * examples)) if examples >= FEWEST_SPARED else 0


def difference(got: torch.Tensor, wanted: torch.Tensor, floor: float = FLOOR, *, chooses: bool = False) -> float:
    """The largest difference, relative to the largest entry wanted; infinite where shapes differ or only one is finite.

    Args:
        floor: see `FLOOR`.
        chooses: the model chooses tokens, so that `spared` examples say nothing.
    """
    if got.shape != wanted.shape:
        return math.inf
    if not wanted.numel():
        return 0.0
    a, b = got.detach().cpu().double(), wanted.detach().cpu().double()
    alike = (a == b) | (torch.isnan(a) & torch.isnan(b))  # infinities of a mask, for instance
    off = torch.where(alike, torch.zeros_like(a), (a - b).abs())
    finite = b[torch.isfinite(b)]
    scale = max(float(finite.abs().max()) if finite.numel() else 0.0, floor)
    if chooses and off.ndim and len(off) > (free := spared(len(off))):
        off = off.reshape(len(off), -1).amax(dim=1).sort().values[: len(off) - free]
    worst = float(off.max()) / scale
    return worst if math.isfinite(worst) else math.inf


def largest(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], floor: float = FLOOR, *, chooses: bool = False) -> float:
    """Over all outputs; infinite where their number differs."""
    if len(got) != len(wanted):
        return math.inf
    return max((difference(a, b, floor, chooses=chooses) for a, b in zip(got, wanted, strict=True)), default=0.0)


def of_model(module: torch.nn.Module, inputs: Sequence[torch.Tensor] = ()) -> str:
    """The lowest precision in which a module computes: that of its tensors and inputs, or ``int8`` where it simulates that.

    A runtime computes quantised layers in whole numbers, so that a step here and there comes out otherwise.
    """
    graph = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
    if getattr(module, "quantised", False) is True or any("fake_quantize" in str(node.target) for node in graph):
        return "int8"
    return precision([*module.parameters(), *module.buffers(), *inputs])


def precision(tensors: Sequence[torch.Tensor]) -> str:
    """The lowest precision among floating-point tensors: ``fp32``, ``fp16`` or ``bf16``."""
    found = [KINDS[tensor.dtype] for tensor in tensors if tensor.dtype in KINDS]
    return max(found, key=lambda name: TOLERANCES[name], default="fp32")
