"""SparseGPT, Wanda and magnitudes as their papers have them, in plain PyTorch, to be held against `hwprune apply` (make bench-llm).

    python benchmarks/language_reference.py --folder FOLDER [--method sparsegpt] [--pattern 0.5 | 2:4 | 4:8] [--windows 16]
        [--order layer | block | none]

Nothing of hwprune's pruning is used: SparseGPT is algorithm 1 of Frantar & Alistarh (2023) with its Cholesky factor of the inverse
Hessian, damping 0.01 and blocks of 128 columns; Wanda is |w| * norm of the input, by rows (Sun et al. 2024). ``--order``: layer,
each layer's inputs come of the pruned layers before it; block, of the pruned blocks before it; none, of the dense model.
Calibrated on windows of WikiText-2's validation text, judged on windows of its test text, both the same as `hwprune apply` takes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, heading
from torch import nn

from hwprune.workload.text_windows import TextData

DATA = Path(os.environ.get("HWPRUNE_DATA", ROOT.parent / "shared" / "data")) / "wikitext2"
LENGTH = 512
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@torch.no_grad()
def perplexity(model: Any, ids: torch.Tensor) -> float:
    """Of every token after the first of its window."""
    total = 0.0
    for window in ids:
        logits = model(window[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        total -= float(logits.gather(1, window[1:, None]).mean())
    return float(torch.tensor(total / len(ids)).exp())


def sparsegpt(weight: torch.Tensor, hessian: torch.Tensor, pattern: str) -> torch.Tensor:
    """Algorithm 1, as in the authors' code."""
    w, h = weight.clone().float(), hessian.clone().float()
    columns = w.shape[1]
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += 0.01 * h.diagonal().mean() * torch.eye(columns)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    n, m = (int(part) for part in pattern.split(":")) if ":" in pattern else (0, 0)
    for first in range(0, columns, 128):
        last = min(first + 128, columns)
        block, factor = w[:, first:last].clone(), inverse[first:last, first:last]
        new, errors = torch.zeros_like(block), torch.zeros_like(block)
        gone = torch.zeros_like(block, dtype=torch.bool)
        if not n:
            scores = block**2 / factor.diagonal()[None] ** 2
            gone = scores <= scores.flatten().sort()[0][int(scores.numel() * float(pattern))]
        for i in range(last - first):
            if n and i % m == 0:
                scores = block[:, i : i + m] ** 2 / factor.diagonal()[None, i : i + m] ** 2
                gone.scatter_(1, i + scores.topk(m - n, dim=1, largest=False)[1], True)
            column, d = block[:, i], factor[i, i]
            kept = column.clone()
            kept[gone[:, i]] = 0
            new[:, i] = kept
            errors[:, i] = (column - kept) / d
            block[:, i:] -= errors[:, i : i + 1] @ factor[i : i + 1, i:]
        w[:, first:last] = new
        w[:, last:] -= errors @ inverse[first:last, last:]
    return w


def scored(scores: torch.Tensor, weight: torch.Tensor, pattern: str, *, by_row: bool) -> torch.Tensor:
    """The weights with the lowest scores at zero."""
    if ":" in pattern:
        n, m = (int(part) for part in pattern.split(":"))
        order = scores.view(len(scores), -1, m).argsort(-1)
        gone = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., : m - n], True).view_as(weight)
    elif by_row:
        order = scores.argsort(1)[:, : int(scores.shape[1] * float(pattern))]
        gone = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, order, True)
    else:
        gone = scores <= scores.flatten().sort()[0][int(scores.numel() * float(pattern)) - 1]
    return weight * ~gone


def pruned(linear: nn.Linear, gram: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """New weights of a layer; ``gram``: mean of x x^T."""
    weight = linear.weight.data
    if options.method == "sparsegpt":
        return sparsegpt(weight, 2 * gram, options.pattern)
    if options.method == "wanda":
        return scored(weight.abs() * gram.diagonal().sqrt(), weight, options.pattern, by_row=True)
    return scored(weight.abs(), weight, options.pattern, by_row=False)


@torch.no_grad()
def prune(model: Any, ids: torch.Tensor, options: argparse.Namespace) -> None:
    """Every linear layer of every block."""
    layers = model.model.layers
    entered: list[tuple[torch.Tensor, dict[str, Any]]] = []

    class Caught(Exception):  # noqa: N818 - no error
        pass

    def catch(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered.append((given[0], named))
        raise Caught

    handle = layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for window in ids:
        with contextlib.suppress(Caught):
            model(window[None], use_cache=False)
    handle.remove()
    streams = [hidden for hidden, _ in entered]
    named = entered[0][1]
    for layer in layers:
        linears = {name.rpartition(".")[2]: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
        after = [layer(x, **named) for x in streams] if options.order == "none" else None
        for group in GROUPS if options.order == "layer" else (sum(GROUPS, ()),):
            grams: dict[str, torch.Tensor] = {}

            def add(name: str, given: tuple[Any, ...], grams: dict[str, torch.Tensor] = grams) -> None:
                x = given[0].flatten(0, -2)
                grams[name] = grams.get(name, 0.0) + x.T @ x / (len(ids) * LENGTH)

            handles = [linears[n].register_forward_pre_hook(lambda _, given, n=n, add=add: add(n, given)) for n in group]
            for x in streams:
                layer(x, **named)
            for one in handles:
                one.remove()
            for name in group:
                linears[name].weight.data = pruned(linears[name], grams[name], options)
        made = [layer(x, **named) for x in streams] if after is None else after
        streams = [x[0] if isinstance(x, tuple) else x for x in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="a Llama-like model in 32 bits")
    parser.add_argument("--method", default="sparsegpt", choices=("sparsegpt", "wanda", "l2"))
    parser.add_argument("--pattern", default="0.5")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--order", default="layer", choices=("layer", "block", "none"))
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM

    heading("SparseGPT and Wanda as their papers have them")
    model: Any = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    calibration, judged = TextData(DATA / "valid.txt", DATA / "test.txt", LENGTH, options.windows).read(Path(options.folder))
    before = perplexity(model, judged)
    started, spent = time.monotonic(), time.process_time()
    prune(model, calibration, options)
    seconds, cpu = time.monotonic() - started, time.process_time() - spent
    found = perplexity(model, judged)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(calibration)} windows calibrate, {len(judged)} judge; dense perplexity {before:.2f}\n")
    print("| method | pattern | order | perplexity | s | CPU s | peak memory, GB |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    print(f"| {options.method} | {options.pattern} | {options.order} | {found:.2f} | {seconds:.0f} | {cpu:.0f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
