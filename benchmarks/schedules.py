"""Draws the schedules of docs/recovery.md.

python benchmarks/schedules.py [--out docs/schedules.png]
"""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hwprune.recovery import schedules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/schedules.png")
    parser.add_argument("--final", type=float, default=0.9)
    options = parser.parse_args()
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    grid = np.linspace(0, 1, 400)
    for name in ("one-shot", "cubic", "linear", "exponential", "iterative:5"):
        schedule = schedules.get(name)
        axes.plot(grid, [schedule(float(p), 0.0, options.final) for p in grid], label=name, lw=2)
    axes.set_xlabel("progress")
    axes.set_ylabel("sparsity")
    axes.set_title(f"from 0 to {options.final:g}", fontsize=10, loc="left")
    axes.grid(color="#e3e6ea")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
