"""Speed of pruning itself (make bench-prune): ours against the literal algorithm, in one process, alternating.

    python benchmarks/prune.py [--pairs 7]

Every ratio is the median over pairs, with the extremes. Peak memory is that of a process of its own for each part.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import workloads
from common import heading

from hwprune import patterns
from hwprune.calibration import collect
from hwprune.methods.layerwise import _Budget
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe
from hwprune.second_order import hessian, least_squares, sparsegpt, structured
from hwprune.structure.torch.analyse import trace


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(first: Callable[[], object], second: Callable[[], object], pairs: int) -> str:
    """Median ratio first / second with its extremes, and both medians."""
    first(), second()
    times = [(seconds(first), seconds(second)) for _ in range(pairs)]
    ratios = [a / b for a, b in times]
    middle = [statistics.median(column) for column in zip(*times, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] ({middle[0]:.3f} s / {middle[1]:.3f} s)"


def literal(
    w: torch.Tensor, h: torch.Tensor, sparsity: float, block: int = 128, n_of_m: tuple[int, int] | None = None
) -> torch.Tensor:
    """Algorithm 1 of SparseGPT as written: inverse, Cholesky, one column after the other inside blocks of 128."""
    w = w.clone()
    d = w.shape[1]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for i in range(0, d, block):
        errors = torch.zeros(len(w), block)
        mask = torch.ones(len(w), block, dtype=torch.bool)
        for j in range(i, i + block):
            if n_of_m is None and j == i:
                scores = w[:, i : i + block].square() / inverse.diagonal()[i : i + block].square()
                threshold = scores.reshape(-1).sort().values[int(scores.numel() * sparsity)]
                mask = scores >= threshold
            elif n_of_m is not None and j % n_of_m[1] == 0:
                scores = w[:, j : j + n_of_m[1]].square() / inverse.diagonal()[j : j + n_of_m[1]].square()
                gone = scores.topk(n_of_m[1] - n_of_m[0], dim=1, largest=False).indices
                mask[:, j - i : j - i + n_of_m[1]] = torch.ones_like(scores, dtype=torch.bool).scatter(1, gone, False)
            errors[:, j - i] = w[:, j] / inverse[j, j] * ~mask[:, j - i]
            w[:, j : i + block] -= errors[:, j - i, None] * inverse[None, j, j : i + block]
        w[:, i : i + block] *= mask
        w[:, i + block :] -= errors @ inverse[i : i + block, i + block :]
    return w


def ours(w: torch.Tensor, h: torch.Tensor, sparsity: float, n_of_m: tuple[int, int] | None = None) -> torch.Tensor:
    factor = hessian.reverse_factor(h[None])
    if n_of_m is None:
        return sparsegpt.sweep(factor, w[None], _Budget(patterns.get("unstructured"), sparsity, (1, *w.shape)))[0][0]
    n, m = n_of_m

    def choose(scores: torch.Tensor, _start: int) -> torch.Tensor:
        return torch.ones_like(scores, dtype=torch.bool).scatter(-1, scores.topk(m - n, dim=-1, largest=False).indices, False)

    return sparsegpt.sweep(factor, w[None], choose, group=m)[0][0]


def problem(rows: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * d, d, generator=generator) @ (torch.randn(d, d, generator=generator) / d**0.5 + torch.eye(d))
    return torch.randn(rows, d, generator=generator), hessian.damp(x.T @ x / len(x)).float()


def part_sparsegpt(pairs: int) -> None:
    print("\n## SparseGPT, 50 %: literal algorithm / ours\n")
    for rows, d in ((768, 3072), (3072, 768)):
        w, h = problem(rows, d)
        for form in (None, (2, 4)):
            losses = [least_squares.loss(h.double(), w, new) for new in (literal(w, h, 0.5, n_of_m=form), ours(w, h, 0.5, form))]
            ratio = compare(
                lambda w=w, h=h, f=form: literal(w, h, 0.5, n_of_m=f), lambda w=w, h=h, f=form: ours(w, h, 0.5, f), pairs
            )
            name = "unstructured" if form is None else "2:4"
            print(f"{rows} x {d}, {name}: {ratio}; loss ours / literal {losses[1] / losses[0]:.4f}")


def part_trace(pairs: int) -> None:
    print("\n## Structured trace of a 64-channel 3x3 convolution (576 inputs, 64 outputs)\n")
    w, h = problem(64, 576)
    h = h.double()
    consumer = structured.Consumer(h, w, torch.arange(576).reshape(64, 9))

    def order() -> torch.Tensor:
        return structured.removal_order([consumer])[0]

    def everything() -> None:
        gone = order()
        last = torch.tensor([i for i in range(64) if i not in set(gone.tolist())])
        columns = (torch.cat([last, gone.flip(0)])[:, None] * 9 + torch.arange(9)).reshape(-1)
        least_squares.nested(h, w, columns, [9 * k for k in range(1, 65)])

    order()
    for name, run in (("order and losses of all 64 levels", order), ("with the weights of all 64 levels", everything)):
        times = [seconds(run) for _ in range(pairs)]
        print(f"{name}: {statistics.median(times):.3f} s [{min(times):.3f}, {max(times):.3f}]")


def part_statistics(pairs: int) -> None:
    print("\n## Statistics on 1,024 images: time / bare forward passes\n")
    for name in ("resnet20", "wide_cnn"):
        workload = getattr(workloads, name)()
        graph = trace(workload.model, workload.example_inputs)

        def forward(workload: workloads.hwprune.Workload = workload) -> None:
            with torch.no_grad():
                for inputs, _ in workload.batches("calibration"):
                    workload.model(*inputs)

        for kind, names in (("Gram matrices, norms, activations", ["gram"]), ("gradients and Fisher information", ["fisher"])):
            ratio = compare(lambda g=graph, w=workload, n=names: collect.collect_statistics(g, w, n), forward, max(3, pairs // 2))
            print(f"{workload.name}, {kind}: {ratio}")


def part_stitching(pairs: int) -> None:
    print("\n## A candidate from the option database\n")
    workload = workloads.resnet20()
    with tempfile.TemporaryDirectory() as folder:
        first = Pruner(workload, Path(folder))
        for unit in first.units.values():
            if unit.role == "channel":
                first.options(unit.name, "channel", "obs", [i / 8 for i in range(1, 8)], "obs")
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors") if not path.name.startswith("statistics"))
        recipe = uniform_recipe(first, "channel", 0.5, "obs", "obs")
        times = [seconds(lambda: first.prune(recipe)) for _ in range(3 * pairs)]
        cut = [seconds(lambda: first.graph.cut(first.prune(recipe).keeps)) for _ in range(pairs)]
        print(f"{len(recipe.choices)} axes at 7 levels: {size / 1e6:.1f} MB on disk; a candidate in {1e3 * statistics.median(times):.0f} ms "
              f"[{1e3 * min(times):.0f}, {1e3 * max(times):.0f}], of which cutting about {1e3 * (statistics.median(cut) - statistics.median(times)):.0f} ms")  # fmt: skip


PARTS = {"sparsegpt": part_sparsegpt, "trace": part_trace, "statistics": part_statistics, "stitching": part_stitching}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--part", choices=list(PARTS))
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](options.pairs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"\npeak memory of this part: {peak / 1e6:.2f} GB")
        return
    heading("Speed of pruning")
    for part in PARTS:
        if part in ("statistics", "stitching") and not workloads.available():
            print(f"{part}: left out, the data are not at {workloads.DATA}")
            continue
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, "--part", part, "--pairs", str(options.pairs)], check=True)


if __name__ == "__main__":
    main()
