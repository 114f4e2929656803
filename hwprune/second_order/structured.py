"""Structured optimal brain surgeon: the order in which whole indices of an axis should go, for every level at once.

ZipLM (Kurtic, Frantar, Alistarh 2023): removing column group S from all rows of W costs ``tr(W_S (H^-1_SS)^-1 W_S^T)``; the
others are updated by ``W -= W_S (H^-1_SS)^-1 H^-1_S:`` and H^-1 is downdated. One group at a time, the cheapest first; with
several consumers of the axis their costs are added.

Neither W nor H^-1 is updated in full at each step: costs need only the diagonal blocks of ``V = H^-1`` and of ``W^T W``, and of
the rest one panel a step. Panels are corrected by what has happened since the last flush (a pivoted Cholesky factorisation of V
that carries W along), and a flush is two matrix products in place. Rows of indices that are gone are dropped only when there are
many of them, because that copies the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hwprune.second_order.hessian import cholesky, inverse

FLUSH_COLUMNS = 96
"""Columns removed between two flushes."""
GONE = 0.2
"""Share of the indices whose rows may stay though they are gone."""


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
    """V and W of one consumer, restricted to removable columns, in the axis's order."""

    def __init__(self, consumer: Consumer) -> None:
        n, self.g = consumer.columns.shape
        columns = consumer.columns.reshape(-1)
        # What is never removed needs no rows here: a downdate of V reads only the removed panel and itself.
        self.v = inverse(consumer.h).index_select(0, columns).index_select(1, columns)
        self.w = consumer.w.double().index_select(1, columns) * consumer.scale**0.5
        if len(self.w) > len(columns):  # only W^T W matters
            self.w = torch.linalg.qr(self.w, mode="r").R
        self.v_blocks = torch.diagonal(self.v.reshape(n, self.g, n, self.g), dim1=0, dim2=2).permute(2, 0, 1).contiguous()
        blocks = self.w.T.reshape(n, self.g, -1)
        self.q_blocks = blocks @ blocks.mT  # of W^T W
        width = FLUSH_COLUMNS + self.g
        self.p, self.e = (self.v.new_zeros(len(self.v), width) for _ in range(2))
        self.a = self.w.new_zeros(len(self.w), width)
        self.used = 0

    def costs(self) -> torch.Tensor:
        """The cost that removing each index would have now, (indices left,)."""
        if self.g == 1:
            costs: torch.Tensor = self.q_blocks / self.v_blocks
            return costs.reshape(-1)
        factors = torch.linalg.cholesky_ex(self.v_blocks).L
        solved = torch.cholesky_solve(self.q_blocks, factors)
        costs = solved.diagonal(dim1=1, dim2=2)
        return costs.sum(dim=1)

    def remove(self, place: int) -> None:
        g, m = self.g, self.used
        s = slice(place * g, place * g + g)
        p, e, a = self.p[:, :m], self.e[:, :m], self.a[:, :m]
        c = self.v[:, s] - p @ p[s].T
        factor = cholesky(c[s])
        new_p = torch.linalg.solve_triangular(factor, c.T, upper=False).T
        new_e = torch.linalg.solve_triangular(factor.T, new_p.T, upper=True).T
        new_a = self.w[:, s] - a @ e[s].T
        q = self.w.T @ new_a - e @ (a.T @ new_a)  # the panel of W^T W
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
        # A removed block of V is zero up to rounding; it must not be factorised again.
        self.v_blocks[place] = torch.eye(g, dtype=self.v.dtype, device=self.v.device)
        self.q_blocks[place] = 0
        self.p[:, m : m + g], self.e[:, m : m + g], self.a[:, m : m + g] = new_p, new_e, new_a
        self.used += g

    @property
    def full(self) -> bool:
        return self.used >= FLUSH_COLUMNS

    def flush(self) -> None:
        """Apply what was put off."""
        p, e, a = (x[:, : self.used] for x in (self.p, self.e, self.a))
        self.v.addmm_(p, p.T, alpha=-1)
        self.w.addmm_(a, e.T, alpha=-1)
        self.used = 0

    def restrict(self, alive: torch.Tensor) -> None:
        """Forget the indices that are gone; what was put off has been applied. ``alive``: (indices,) bool."""
        rows = alive.repeat_interleave(self.g).nonzero().squeeze(1)
        self.v = self.v.index_select(0, rows).index_select(1, rows)
        self.w = self.w.index_select(1, rows)
        self.v_blocks, self.q_blocks = self.v_blocks[alive], self.q_blocks[alive]
        self.p, self.e = self.p[: len(rows)], self.e[: len(rows)]


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
        if any(state.full for state in states):
            for state in states:
                state.flush()
            if int(alive.sum()) < (1 - GONE) * len(alive):
                for state in states:
                    state.restrict(alive.to(state.v.device))
                left, alive = left[alive], torch.ones(int(alive.sum()), dtype=torch.bool)
    return torch.tensor(order, dtype=torch.int64), torch.tensor(losses, dtype=torch.float64)
