"""The model of least divergence that saves enough time, by the quadratic near another model.

A quadratic program in integers. It is searched by single changes and by pairs of them (what is cut in one block is given back
in another), each the best of all there are; tests hold it against all models where there are few. Few pairs stay near the model
where the quadratic is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwprune.language.word_responses import Responses

MOST_ROUNDS = 500
"""Changes after which a search ends that finds ever smaller gains."""
GAIN = 1e-6
"""Nats below which a change is none."""
FORBIDDEN = 1e9


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model must save.

    Attributes:
        saved: (resources, choices), in the order of `Responses.row`.
        least: (resources,).
    """

    saved: np.ndarray
    least: np.ndarray


@dataclass(frozen=True, slots=True)
class _Moves:
    """Every other choice of every part: the row that it takes, the one that goes, and the part."""

    new: np.ndarray
    old: np.ndarray
    part: np.ndarray


def least_divergence(responses: Responses, needs: Needs, pairs: int, attention: float = 1.0) -> list[tuple[int, int]] | None:
    """The best model that is found; None: nothing saves enough.

    Args:
        pairs: exchanges at most; single changes are not counted.
        attention: factor of what changes of attention cost.
    """
    factor = np.ones(len(responses.linear))
    each = sum(responses.counts)
    factor[np.arange(len(factor)) % each < responses.counts[0]] = attention
    linear = responses.linear * factor
    curvature = responses.curvature * np.sqrt(np.outer(factor, factor))
    rows = np.array(responses.rows(responses.base))
    slack = needs.saved[:, rows].sum(1) - needs.least
    while (slack < -1e-12).any():
        moves, costs = _costs(responses, rows, linear, curvature)
        gains = needs.saved[:, moves.new] - needs.saved[:, moves.old]
        scale = np.maximum(np.abs(needs.least), 1e-12)
        short = np.maximum(-slack, 0) / scale
        left = np.maximum(-slack[:, None] - gains, 0) / scale[:, None]
        helped = short.sum() - left.sum(0)
        if helped.max() <= 1e-12:
            return None
        ratio = np.where(helped > 1e-12, np.maximum(costs, 1e-9) / np.maximum(helped, 1e-12), np.inf)
        rows = _taken(rows, moves, [int(ratio.argmin())])
        slack = needs.saved[:, rows].sum(1) - needs.least
    for _ in range(MOST_ROUNDS):
        moves, costs = _costs(responses, rows, linear, curvature)
        gains = needs.saved[:, moves.new] - needs.saved[:, moves.old]
        alone = np.where((gains + slack[:, None] >= -1e-12).all(0), costs, FORBIDDEN)
        best, taken = float(alone.min()), [int(alone.argmin())]
        if pairs > 0:
            both = _pair_costs(moves, costs, curvature)
            for gain, left in zip(gains, slack, strict=True):
                both[gain[:, None] + gain[None, :] + left < -1e-12] = FORBIDDEN
            place = int(both.argmin())
            if both.flat[place] < best - GAIN:
                best, taken = float(both.flat[place]), [int(x) for x in np.unravel_index(place, both.shape)]
                pairs -= 1
        if best > -GAIN:
            break
        rows = _taken(rows, moves, taken)
        slack = needs.saved[:, rows].sum(1) - needs.least
    return _allocation(responses, rows)


def best_alike(responses: Responses, needs: Needs, attention: float = 1.0) -> list[tuple[int, int]] | None:
    """The best of the models whose blocks are all alike."""
    depth, (first, second) = len(responses.base), responses.counts
    found: list[tuple[int, int]] | None = None
    least = np.inf
    for places in np.ndindex(first, second):
        allocation = [(int(places[0]), int(places[1]))] * depth
        rows = responses.rows(allocation)
        if (needs.saved[:, rows].sum(1) < needs.least - 1e-12).any():
            continue
        expected = responses.expected(allocation) + (attention - 1) * float(responses.linear[rows[::2]].sum())
        if expected < least:
            found, least = allocation, expected
    return found


def _costs(responses: Responses, rows: np.ndarray, linear: np.ndarray, curvature: np.ndarray) -> tuple[_Moves, np.ndarray]:
    """All single changes, and what each costs."""
    new, old, part = [], [], []
    for place, row in enumerate(rows):
        index, kind = divmod(place, 2)
        start = responses.row(index, kind, 0)
        for other in range(start, start + responses.counts[kind]):
            if other != row:
                new.append(other)
                old.append(int(row))
                part.append(place)
    moves = _Moves(np.array(new), np.array(old), np.array(part))
    slope = linear + curvature[:, rows].sum(1)
    own = np.diag(curvature)
    bend = own[moves.new] + own[moves.old] - 2 * curvature[moves.new, moves.old]
    return moves, slope[moves.new] - slope[moves.old] + bend / 2


def _pair_costs(moves: _Moves, costs: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """(moves, moves) what two changes cost; two of the same part are none."""
    new, old = moves.new, moves.old
    joint = curvature[np.ix_(new, new)] - curvature[np.ix_(new, old)] - curvature[np.ix_(old, new)] + curvature[np.ix_(old, old)]
    return np.where(moves.part[:, None] == moves.part[None, :], FORBIDDEN, costs[:, None] + costs[None, :] + joint)


def _taken(rows: np.ndarray, moves: _Moves, taken: Sequence[int]) -> np.ndarray:
    changed = rows.copy()
    for place in taken:
        changed[moves.part[place]] = moves.new[place]
    return changed


def _allocation(responses: Responses, rows: np.ndarray) -> list[tuple[int, int]]:
    places = [int(row) - responses.row(place // 2, place % 2, 0) for place, row in enumerate(rows)]
    return list(zip(places[::2], places[1::2], strict=True))
