"""Damped Hessians and their factors."""

from __future__ import annotations

import torch

from hwprune.errors import CandidateFailure

DAMPING = 1e-2
"""Share of the mean diagonal added to it (Frantar & Alistarh 2023, SparseGPT, section 4.1)."""


def damp(h: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """``h`` (..., d, d) plus ``damping`` times its mean diagonal on the diagonal, in float64.

    That is a ridge towards the dense weights: an input that is always zero costs almost nothing and keeps its weight if it is
    kept.
    """
    damped = h.to(torch.float64, copy=True)
    mean = damped.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    ridge = damping * torch.where(mean > 0, mean, torch.ones_like(mean))
    damped.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    return damped


def cholesky(h: torch.Tensor) -> torch.Tensor:
    """Lower factor of (..., d, d). Raises `CandidateFailure` for a matrix that is not positive definite or not finite."""
    factor: torch.Tensor
    factor, info = torch.linalg.cholesky_ex(h)
    if bool(info.any()) or not bool(torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all()):
        raise CandidateFailure(
            "prune", f"a Gram matrix of {h.shape[-1]} inputs is not positive definite even when damped: raise the damping"
        )
    return factor


def inverse(h: torch.Tensor) -> torch.Tensor:
    """Inverse of a positive definite (d, d) matrix.

    With one thread: LAPACK's ``potri`` lets its threads wait for each other at every small step. Beside other work two of them
    take seconds now and then, and on a free machine no less time than one (`benchmarks/second_order.py`).
    """
    factor = cholesky(h)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.cholesky_inverse(factor)
    finally:
        torch.set_num_threads(threads)


def reverse_factor(h: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Lower Cholesky factor L of ``J h J``, where J reverses the order; (..., d, d).

    ``R = J L J`` is upper triangular with ``R R^T = h``, and ``R_jj^-2 = [(h_{j:,j:})^-1]_jj``. SparseGPT's factor of the
    inverse is ``U = R^-1``, which `sparsegpt` does not need.

    Raises:
        CandidateFailure: h is not positive definite, in float64 either.
    """
    decomposition = torch.linalg.cholesky_ex(h.to(dtype).flip(-2, -1))
    if bool(decomposition.info.any()) or not bool(torch.isfinite(decomposition.L.diagonal(dim1=-2, dim2=-1)).all()):
        if dtype is torch.float64:
            return cholesky(h.flip(-2, -1))  # raises with the reason
        return reverse_factor(h.double(), torch.float64).to(dtype)
    factor: torch.Tensor = decomposition.L
    return factor
