"""Products by half, inverses by one thread, structured OBS: seconds beside plain PyTorch (make bench-prune names it).

    python benchmarks/second_order.py [--beside 2]

``--beside`` is the number of busy processes that run meanwhile, as on a machine that others use. Medians of five; the two ways alternate.
OMP_WAIT_POLICY is the environment's: hwprune's command line sets PASSIVE, a notebook has none.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from common import heading

from hwprune.second_order import hessian, structured
from hwprune.second_order.products import gram


def paired(first: Callable[[], object], second: Callable[[], object], times: int = 5) -> tuple[list[float], list[float]]:
    """Seconds of both, by turns."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for place, one in enumerate((first, second)):
            start = time.perf_counter()
            one()
            spent[place].append(time.perf_counter() - start)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=int, default=0)
    options = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.beside)]
    try:
        heading("Second order")
        print(f"{options.beside} busy processes beside it, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}\n")
        print("| what | columns | plain: median, largest s | here: median, largest s | ratio of medians |")
        print("| --- | ---: | --- | --- | ---: |")
        generator = torch.Generator().manual_seed(0)
        for d in (576, 1152, 2304):
            x = torch.randn(4 * d, d, generator=generator)
            h = hessian.damp(x.T @ x / len(x))
            ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "x^T x": (lambda x=x: x.T @ x, lambda x=x: gram(x)),  # type: ignore[misc]
                "inverse": (
                    lambda h=h: torch.cholesky_inverse(torch.linalg.cholesky(h)), lambda h=h: hessian.inverse(h)  # type: ignore[misc]
                ),
            }  # fmt: skip
            for name, (plain, here) in ways.items():
                before, after = paired(plain, here)
                a, b = (f"{statistics.median(each):.4f}, {max(each):.4f}" for each in (before, after))
                print(f"| {name} | {d} | {a} | {b} | {statistics.median(after) / statistics.median(before):.2f} |", flush=True)
        x = torch.randn(4 * 2304, 2304, generator=generator)
        consumer = structured.Consumer(
            hessian.damp(x.T @ x / len(x)), torch.randn(64, 2304, generator=generator), torch.arange(2304).reshape(256, 9)
        )
        start = time.perf_counter()
        structured.removal_order([consumer], 128)
        print(f"\nHalf of 256 channels of 3x3, 64 outputs, in the order of structured OBS: {time.perf_counter() - start:.2f} s")
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
