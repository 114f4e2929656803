"""Structured OBS against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.second_order import hessian, structured
from tests.second_order.helpers import greedy_by_brute_force, problem


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("flush", [2, 96])
@pytest.mark.parametrize("gone", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("outputs", [4, 40])
def test_structured_trace_against_brute_force(group, flush, gone, outputs, monkeypatch):
    """Order and true loss of every step, with two consumers of different outputs, and columns that are never removed; rows of
    what is gone dropped at once, later or never; fewer and more outputs than columns.
    """
    monkeypatch.setattr(structured, "FLUSH_COLUMNS", flush)
    monkeypatch.setattr(structured, "GONE", gone)
    n = 5
    d = n * group + 2
    columns = torch.randperm(d, generator=torch.Generator().manual_seed(3))[: n * group].reshape(n, group)
    problems = [(*problem(d, outputs, seed)[:2], scale) for seed, scale in ((0, 1.0), (1, 0.3))]
    consumers = [structured.Consumer(hessian.damp(x.T @ x / len(x), 1e-9), w, columns, scale) for x, w, scale in problems]
    order, losses = structured.removal_order(consumers, 0)
    expected, expected_losses = greedy_by_brute_force(problems, n, columns)
    assert order.tolist() == expected
    assert losses.tolist() == pytest.approx(expected_losses, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), d=st.integers(2, 10), r=st.integers(1, 5))
def test_losses_grow_with_every_removal_and_end_at_the_whole(seed, d, r):
    _, w, h = problem(d, r, seed)
    order, losses = structured.removal_order([structured.Consumer(h, w, torch.arange(d)[:, None])], 0)
    assert sorted(order.tolist()) == list(range(d))
    assert (losses >= 0).all()
    assert float(losses.sum()) == pytest.approx(float(((w @ h) * w).sum()), rel=1e-5)
