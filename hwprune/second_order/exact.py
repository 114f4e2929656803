"""Exact optimal brain surgeon on single weights and blocks (Optimal Brain Compression; Frantar, Singh, Alistarh 2022).

Rows (or blocks of rows that lose the same columns) have inverse Hessians of their own, so a step of all of them is one batch.
As in `structured`, H^-1 is never updated: each batch keeps the factor of its downdates. The order inside a row is greedy;
which rows go how far is decided by the loss that each step adds, so that a row's steps are taken in their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hwprune.second_order.hessian import inverse

CHUNK_BYTES = 400_000_000


@dataclass(frozen=True, slots=True, eq=False)
class KeepLimits:
    """N:M: of every ``m`` consecutive groups at most ``remove`` may go."""

    m: int
    remove: int


def removal_orders(
    h: torch.Tensor, w: torch.Tensor, columns: torch.Tensor, steps: int, limits: KeepLimits | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy order of removal in each block of rows.

    Args:
        h: (d, d) damped Hessian.
        w: (b, r, d): b blocks of r rows; the rows of a block lose the same columns.
        columns: (n, g): the columns that go together; every column once.
        steps: groups removed from each block of rows, at most n.
        limits: of consecutive groups.

    Returns:
        groups (b, steps) in order of removal, and the loss that each step adds (b, steps), float64.
    """
    flat = columns.reshape(-1)
    v = inverse(h).index_select(0, flat).index_select(1, flat)
    w = w.double().index_select(2, flat)
    step = max(1, CHUNK_BYTES // (8 * len(flat) * max(1, steps) * columns.shape[1]))
    parts = [_batch(v, part, columns.shape[1], steps, limits) for part in torch.split(w, step)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _batch(v: torch.Tensor, w: torch.Tensor, g: int, steps: int, limits: KeepLimits | None) -> tuple[torch.Tensor, torch.Tensor]:
    b, _, d = w.shape
    n = d // g
    w = w.clone()
    blocks = torch.diagonal(v.reshape(n, g, n, g), dim1=0, dim2=2).permute(2, 0, 1).expand(b, n, g, g).clone()
    p = v.new_zeros(b, d, steps * g)
    gone = torch.zeros(b, n, dtype=torch.bool, device=w.device)
    lost = None if limits is None else torch.zeros(b, n // limits.m, dtype=torch.int64, device=w.device)
    order, losses = [], []
    every = torch.arange(b, device=w.device)
    eye = torch.eye(g, dtype=v.dtype, device=v.device)
    for t in range(steps):
        groups = w.reshape(b, -1, n, g).permute(0, 2, 3, 1)  # (b, n, g, r)
        if g == 1:
            costs = groups.square().sum(dim=(2, 3)) / blocks[:, :, 0, 0]
        else:
            solved = torch.cholesky_solve(groups, torch.linalg.cholesky_ex(blocks).L)
            costs = (groups * solved).sum(dim=(2, 3))
        costs = costs.masked_fill(gone | costs.isnan(), torch.inf)
        if lost is not None and limits is not None:
            costs = costs.masked_fill((lost >= limits.remove).repeat_interleave(limits.m, dim=1), torch.inf)
        least, pick = costs.min(dim=1)
        order.append(pick)
        losses.append(least.clamp(min=0))
        gone[every, pick] = True
        if lost is not None and limits is not None:
            lost[every, pick // limits.m] += 1
        places = pick[:, None] * g + torch.arange(g, device=w.device)  # (b, g)
        rows = p[every[:, None], places, : t * g]  # (b, g, t g)
        c = v[places].transpose(1, 2) - p[:, :, : t * g] @ rows.mT  # (b, d, g)
        factor = torch.linalg.cholesky_ex(c[every[:, None], places]).L
        new = torch.linalg.solve_triangular(factor, c.mT, upper=False)  # (b, g, d)
        removed = w.gather(2, places[:, None, :].expand(-1, w.shape[1], -1))  # (b, r, g)
        w -= torch.linalg.solve_triangular(factor, removed.mT, upper=False).mT @ new
        w[every[:, None], :, places] = 0
        p[:, :, t * g : (t + 1) * g] = new.mT
        pb = new.mT.reshape(b, n, g, g)
        blocks -= pb @ pb.mT
        blocks[every, pick] = eye
    return torch.stack(order, dim=1), torch.stack(losses, dim=1)


def choose(order: torch.Tensor, losses: torch.Tensor, removed: int) -> torch.Tensor:
    """Keep mask over groups (b, n) that takes ``removed`` of all the steps, in each row a prefix of its order.

    Steps are ranked by their loss, raised to that of the step before where it is lower: so a step never comes before an
    earlier one.
    """
    rising = losses.cummax(dim=1).values
    taken = torch.zeros(rising.numel(), dtype=torch.bool, device=order.device)
    # Ties: the stable sort of the flattened steps takes earlier steps of a row first.
    taken[torch.argsort(rising.reshape(-1), stable=True)[:removed]] = True
    keep = torch.ones(order.shape, dtype=torch.bool, device=order.device)
    return keep.scatter(1, order, ~taken.reshape(order.shape))
