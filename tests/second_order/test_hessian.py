"""Matrices that are not positive definite."""

from __future__ import annotations

import pytest
import torch

from hwprune.errors import CandidateFailure
from hwprune.second_order import hessian, least_squares


def test_matrices_that_are_not_positive_definite_are_a_failed_candidate():
    with pytest.raises(CandidateFailure, match="not positive definite"):
        hessian.cholesky(-torch.eye(3, dtype=torch.float64))
    with pytest.raises(CandidateFailure):
        hessian.reverse_factor(-torch.eye(3)[None])
    with pytest.raises(CandidateFailure):
        hessian.cholesky(torch.full((2, 2), float("nan"), dtype=torch.float64))


def test_an_inverse_leaves_the_number_of_threads_as_it_was():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.randn(50, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(hessian.inverse(x.T @ x) @ (x.T @ x), torch.eye(20, dtype=torch.float64), atol=1e-9)
        with pytest.raises(CandidateFailure):
            hessian.inverse(-torch.eye(3, dtype=torch.float64))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_rank_deficient_and_empty_inputs_are_damped():
    x = torch.zeros(1, 5, dtype=torch.float64)
    x[0, :2] = 1.0  # one sample, three dead inputs
    h = hessian.damp(x.T @ x)
    w = torch.arange(10, dtype=torch.float64).reshape(2, 5)
    new = least_squares.on_columns(h, w, torch.tensor([True, False, True, True, True]))
    assert torch.isfinite(new).all()
    assert torch.allclose(new[:, 1:], w[:, 2:])  # dead inputs keep their weights
    assert torch.isfinite(
        least_squares.on_columns(hessian.damp(torch.zeros(3, 3)), w[:, :3], torch.tensor([True, True, False]))
    ).all()
