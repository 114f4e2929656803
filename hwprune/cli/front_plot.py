"""The front so far as a small plot of characters: speedup on a log scale against the drop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hwprune.records import pareto

ROWS, MOST_COLUMNS, LABEL = 7, 56, 6
"""Lines of the plot, its widest, and the width of its labels."""
REFERENCE = 0.05
"""Drop at the right end where the user gives no limit, if the drops are those of a share of right answers."""


@dataclass(slots=True)
class FrontPlot:
    """Trials as points.

    Attributes:
        points: (drop, speedup) of each.
    """

    points: list[tuple[float, float]] = field(default_factory=list)

    def lines(self, width: int, max_drop: float | None = None, *, ascii_only: bool = False) -> list[str]:
        """The plot, at most ``width`` characters wide.

        Args:
            max_drop: the limit on the drop; twice of it is the right end.
        """
        columns = min(MOST_COLUMNS, width - LABEL - 1)
        if columns < 12 or not self.points:
            return []
        right = self._right(max_drop)
        shown = [(max(drop, 0.0), speedup) for drop, speedup in self.points if drop <= right]
        if not shown:
            return []
        top = max(2.0, *(speedup for _, speedup in shown))
        bottom = min(1.0, *(speedup for _, speedup in shown))
        front = set(pareto.non_dominated(shown, lambda point: point))
        other, best = (".", "*") if ascii_only else ("·", "●")
        grid = [[" "] * columns for _ in range(ROWS)]
        for point in sorted(shown, key=lambda one: one in front):  # the front is drawn over what is behind it
            drop, speedup = point
            column = min(columns - 1, int(drop / right * columns))
            height = math.log(max(speedup, bottom) / bottom) / math.log(top / bottom)
            grid[ROWS - 1 - min(ROWS - 1, int(height * ROWS))][column] = best if point in front else other
        labels = {0: f"{top:.1f}x", ROWS - 1: f"{bottom:.1f}x"}
        edge = "|" if ascii_only else "│"
        rows = [f"{labels.get(row, ''):>{LABEL}}{edge}{''.join(line).rstrip()}" for row, line in enumerate(grid)]
        left, end = "drop 0", f"{right:g}"
        return [*rows, " " * (LABEL + 1) + left + " " * max(1, columns - len(left) - len(end)) + end]

    def _right(self, max_drop: float | None) -> float:
        if max_drop:
            return 2 * max_drop
        drops = sorted(drop for drop, _ in self.points)
        middle = drops[len(drops) // 2]
        return REFERENCE if middle <= 1.0 else max(1.0, 2 * middle)
