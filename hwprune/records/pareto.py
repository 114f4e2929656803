"""Which points no other dominates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Objectives = tuple[float, float]


def non_dominated(items: Sequence[T], objectives: Callable[[T], Objectives]) -> list[T]:
    """The items whose (drop, speedup) no other beats: drop is minimised, speedup maximised.

    Of items with equal objectives the first stays. Sorted by speedup, slowest first.
    """
    ordered = sorted(enumerate(items), key=lambda pair: (-objectives(pair[1])[1], objectives(pair[1])[0], pair[0]))
    front: list[T] = []
    best = float("inf")
    for _, item in ordered:
        drop = objectives(item)[0]
        if drop < best:
            front.append(item)
            best = drop
    return front[::-1]


def layers(items: Sequence[T], objectives: Callable[[T], Objectives], most: int | None = None) -> list[list[T]]:
    """Non-dominated sorting: the front, then the front of the rest, and so on; at most ``most`` of them."""
    rest = list(items)
    result: list[list[T]] = []
    while rest and (most is None or len(result) < most):
        front = non_dominated(rest, objectives)
        taken = {id(item) for item in front}
        rest = [item for item in rest if id(item) not in taken]
        result.append(front)
    return result


def hypervolume(points: Sequence[Objectives], reference: Objectives) -> float:
    """Area dominated by ``points`` (drop, speedup) up to ``reference`` = (largest drop, smallest speedup)."""
    inside = [p for p in points if p[0] < reference[0] and p[1] > reference[1]]
    area = 0.0
    slowest = reference[1]
    for drop, speedup in non_dominated(inside, lambda p: p):
        area += (reference[0] - drop) * (speedup - slowest)
        slowest = speedup
    return area
