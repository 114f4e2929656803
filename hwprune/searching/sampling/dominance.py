"""Choices that no other choice dominates."""

from __future__ import annotations

from collections.abc import Sequence


def undominated(times: Sequence[float], errors: Sequence[float], others: Sequence[Sequence[float]] = ()) -> list[int]:
    """Positions of the options that no other beats in everything, fastest first; of equals the first.

    Args:
        others: further resources that count, each with its use by option.
    """
    uses = [tuple(row) for row in zip(times, errors, *others, strict=True)]
    kept: list[int] = []
    for i in sorted(range(len(uses)), key=lambda i: (*uses[i], i)):  # nobody is beaten by one who comes later
        if not any(all(a <= b for a, b in zip(uses[j], uses[i], strict=True)) for j in kept):
            kept.append(i)
    return kept
