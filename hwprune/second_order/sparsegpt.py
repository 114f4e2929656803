"""SparseGPT (Frantar & Alistarh 2023, algorithm 1): one sweep over the columns that chooses masks and updates what is to the
right.

The paper updates ``W_{:,j:} -= e_j U_{j,j:}`` with U the Cholesky factor of H^-1: two factorisations and an inverse before the
sweep can begin. The same arithmetic without an inverse: with ``H = R R^T``, R upper triangular, U is R^-1, and the total change
``D = W - W' = E U`` obeys ``D R = E``, where column j of E is zero if column j is kept. So for row by row decisions

    w'_j = w_j + S_j / R_jj     with S_j = sum_{k<j} D_k R_kj   (what is left of w_j before its own turn),
    D_j  = w_j                  if it goes,
    D_j  = -S_j / R_jj          if it stays,

and of a block b of columns whose turn comes, the weights as they are now are ``w_b + S_b R_bb^-1``: a small triangular solve,
for the scores ``w'^2 / U_jj^2 = (w' R_jj)^2``. Weights are kept transposed (columns contiguous), and a block of 128
columns is done in inner blocks: only 16 columns are updated one by one, all others by matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

BLOCK = 128
"""Columns whose mask is chosen together (the paper's B_s)."""
INNER = 16

Choose = Callable[[torch.Tensor, int], torch.Tensor]
"""(scores (G, r, c) of the next columns, first column) -> keep mask (G, r, c)."""


def sweep(
    factor: torch.Tensor,
    w: torch.Tensor,
    choose: Choose | None = None,
    keep: torch.Tensor | None = None,
    group: int | None = None,
    block: int = BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune and update.

    Args:
        factor: (G, d, d), from `hessian.reverse_factor`: the Cholesky factor L of the Hessians with their columns in reverse
            order, so that ``R_jk = L_{d-1-j,d-1-k}``.
        w: (G, r, d) dense weights, columns in the order of the sweep.
        choose: chooses masks from the scores; asked once for ``block`` columns, or for every ``group`` columns.
        keep: (G, r, d) a mask that stands already, instead of ``choose``.
        group: columns that are chosen together, when their scores must be those of the weights as updated so far (N:M).

    Returns:
        new weights (G, r, d) in the dtype of ``factor``, and the keep mask.
    """
    g, rows, d = w.shape
    # Everything is stored with the columns last first, as L is: the sweep goes down from the end.
    wt = w.to(factor.dtype).flip(2).transpose(1, 2).contiguous()  # (G, d, r)
    masks = torch.ones(g, d, rows, dtype=torch.bool, device=w.device)
    if keep is not None:
        masks = keep.flip(2).transpose(1, 2).contiguous()
    change, pull = torch.empty_like(wt), torch.zeros_like(wt)  # D and S
    inner = INNER if group is None else max(group, INNER // group * group)
    block = block if group is None else max(inner, block // inner * inner)
    diagonal = factor.diagonal(dim1=1, dim2=2)[:, :, None]
    now = torch.empty_like(wt[:, 0])
    w_of, pull_of, change_of, diagonal_of = (x.unbind(1) for x in (wt, pull, change, diagonal))  # views of single columns

    def ask(start: int, stop: int) -> None:
        if choose is not None:
            part = slice(start, stop)
            current = torch.linalg.solve_triangular(factor[:, part, part].mT, pull[:, part], upper=True).add_(wt[:, part])
            scores = current.mul_(diagonal[:, part]).square_()
            masks[:, part] = choose(scores.flip(1).transpose(1, 2), d - stop).transpose(1, 2).flip(1)

    for stop in range(d, 0, -block):
        start = max(0, stop - block)
        if group is None:
            ask(start, stop)
        stays = masks[:, start:stop].to(wt.dtype)
        for last in range(stop, start, -inner):
            first = max(start, last - inner)
            for j in range(last - 1, first - 1, -1):
                if group is not None and (stop - 1 - j) % group == 0:
                    part = slice(j - group + 1, j + 1)
                    ask(part.start, part.stop)
                    stays[:, part.start - start : part.stop - start] = masks[:, part]
                torch.addcdiv(w_of[j], pull_of[j], diagonal_of[j], out=now)
                torch.addcmul(w_of[j], stays[:, j - start], now, value=-1, out=change_of[j])  # w_j, less what stays of it
                if j > first:
                    pull[:, first:j].addcmul_(factor[:, j, first:j, None], change_of[j][:, None])
            if first > start:
                pull[:, start:first].baddbmm_(factor[:, first:last, start:first].mT, change[:, first:last])
        if start:
            pull[:, :start].baddbmm_(factor[:, start:stop, :start].mT, change[:, start:stop])
    wt -= change
    wt *= masks
    return wt.transpose(1, 2).flip(2), masks.transpose(1, 2).flip(2)
