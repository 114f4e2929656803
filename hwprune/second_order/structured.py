"""Structured optimal brain surgeon: the order in which whole indices of an axis should go, for every level at once.

ZipLM (Kurtic, Frantar, Alistarh 2023): removing column group S from all rows of W costs ``tr(W_S (H^-1_SS)^-1 W_S^T)``; the
others are updated by ``W -= W_S (H^-1_SS)^-1 H^-1_S:`` and H^-1 is downdated. One group at a time, the cheapest first; with
several consumers of the axis their costs are added.

Neither W nor H^-1 is updated in full at each step: costs need only the diagonal blocks of ``V = H^-1`` and ``Q = W^T W``, and
of the rest one panel a step. Panels are corrected by what has happened since the last flush (a pivoted Cholesky factorisation
of V that carries Q along), and a flush is three matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hwprune.second_order.hessian import cholesky, inverse

FLUSH_COLUMNS = 96
"""Columns removed between two flushes."""


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """One layer that reads the axis.

    Attributes:
        h: (d, d) damped Hessian of its inputs.
        w: (r, d) weights.
        columns: (n, g): the columns that belong to each index of the axis. Other columns are never removed.
        scale: what its losses are multiplied with, to be compared with those of other consumers (1 / output variance).
    """

    h: torch.Tensor
    w: torch.Tensor
    columns: torch.Tensor
    scale: float = 1.0


class _State:
    """V and Q of one consumer, restricted to removable columns, in the axis's order."""

    def __init__(self, consumer: Consumer) -> None:
        self.g = consumer.columns.shape[1]
        columns = consumer.columns.reshape(-1)
        # What is never removed needs no rows here: a downdate of V reads only the removed panel and itself.
        self.v = inverse(consumer.h).index_select(0, columns).index_select(1, columns)
        w = consumer.w.double().index_select(1, columns) * consumer.scale**0.5
        self.q = w.T @ w
        self._copy_blocks()
        self._clear()

    def _copy_blocks(self) -> None:
        n, g = len(self.v) // self.g, self.g
        self.v_blocks, self.q_blocks = (
            torch.diagonal(m.reshape(n, g, n, g), dim1=0, dim2=2).permute(2, 0, 1).contiguous() for m in (self.v, self.q)
        )

    def _clear(self) -> None:
        self.p, self.e, self.f = (self.v.new_zeros(len(self.v), FLUSH_COLUMNS + self.g) for _ in range(3))
        self.used = 0

    def costs(self) -> torch.Tensor:
        """The cost that removing each index would have now, (indices left,)."""
        if self.g == 1:
            return (self.q_blocks / self.v_blocks).reshape(-1)
        factors = torch.linalg.cholesky_ex(self.v_blocks).L
        solved = torch.cholesky_solve(self.q_blocks, factors)
        return solved.diagonal(dim1=1, dim2=2).sum(dim=1)

    def remove(self, place: int) -> None:
        g, m = self.g, self.used
        s = slice(place * g, place * g + g)
        p, e, f = self.p[:, :m], self.e[:, :m], self.f[:, :m]
        c = self.v[:, s] - p @ p[s].T
        q = self.q[:, s] - f @ e[s].T - e @ f[s].T
        factor = cholesky(c[s])
        new_p = torch.linalg.solve_triangular(factor, c.T, upper=False).T
        new_e = torch.cholesky_solve(c.T, factor).T
        new_f = q - 0.5 * new_e @ q[s]
        n = len(self.v_blocks)
        pb, eb, fb = (x.reshape(n, g, g) for x in (new_p, new_e, new_f))
        if g == 1:
            self.v_blocks -= pb.square()
            self.q_blocks -= 2 * fb * eb
        else:
            self.v_blocks -= pb @ pb.mT
            cross = fb @ eb.mT
            self.q_blocks -= cross + cross.mT
        self.p[:, m : m + g], self.e[:, m : m + g], self.f[:, m : m + g] = new_p, new_e, new_f
        self.used += g

    @property
    def full(self) -> bool:
        return self.used >= FLUSH_COLUMNS

    def flush(self, alive: torch.Tensor) -> None:
        """Apply what was put off, and forget the indices that are gone. ``alive``: (indices,) bool."""
        m = self.used
        rows = alive.repeat_interleave(self.g).nonzero().squeeze(1)
        p, e, f = (x[rows, :m] for x in (self.p, self.e, self.f))
        self.v = self.v[rows][:, rows] - p @ p.T
        cross = f @ e.T
        self.q = self.q[rows][:, rows] - cross - cross.T
        self._copy_blocks()
        self._clear()


def removal_order(consumers: Sequence[Consumer], keep_at_least: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy order of removal.

    Returns:
        The indices removed, first to last, (n - keep_at_least,), and the loss that each step adds, float64.
    """
    n = len(consumers[0].columns)
    states = [_State(consumer) for consumer in consumers]
    left = torch.arange(n)
    alive = torch.ones(n, dtype=torch.bool)
    order, losses = [], []
    for _ in range(n - max(0, keep_at_least)):
        costs = torch.stack([state.costs() for state in states]).sum(dim=0).cpu()
        costs = torch.where(alive & ~costs.isnan(), costs.clamp(min=0), torch.inf)
        place = int(costs.argmin())
        order.append(int(left[place]))
        losses.append(float(costs[place]))
        alive[place] = False
        if not bool(alive.any()):
            break
        for state in states:
            state.remove(place)
            # A removed block of V is zero up to rounding; it must not be factorised again.
            state.v_blocks[place] = torch.eye(state.g, dtype=state.v.dtype, device=state.v.device)
            state.q_blocks[place] = 0
        if any(state.full for state in states):
            for state in states:
                state.flush(alive.to(state.v.device))
            left, alive = left[alive], torch.ones(int(alive.sum()), dtype=torch.bool)
    return torch.tensor(order, dtype=torch.int64), torch.tensor(losses, dtype=torch.float64)
