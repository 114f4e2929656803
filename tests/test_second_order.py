"""The linear algebra against brute force, `torch.linalg.lstsq`, and the papers' algorithms written down literally."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.errors import CandidateFailure
from hwprune.second_order import exact, hessian, least_squares, sparsegpt, structured


def inputs(d, rows=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows or 6 * d, d, generator=generator, dtype=torch.float64)
    return x @ torch.randn(d, d, generator=generator, dtype=torch.float64)


def problem(d, r, seed=0):
    x = inputs(d, seed=seed)
    w = torch.randn(r, d, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return x, w, hessian.damp(x.T @ x / len(x), 1e-9)


def best_loss(x, w, keep):
    """The true quadratic loss of the best weights on a support, by `torch.linalg.lstsq` on the data themselves."""
    y = x @ w.T
    if not keep.any():
        return float(y.square().sum() / len(x))
    solved = torch.linalg.lstsq(x[:, keep], y).solution
    return float((x[:, keep] @ solved - y).square().sum() / len(x))


def test_least_squares_against_lstsq():
    x, w, h = problem(7, 4)
    keep = torch.tensor([True, False, True, True, False, True, True])
    solved = least_squares.on_columns(h, w, keep)
    assert torch.allclose(solved, torch.linalg.lstsq(x[:, keep], x @ w.T).solution.T, atol=1e-6)
    new = torch.zeros_like(w)
    new[:, keep] = solved
    assert least_squares.loss(h, w, new) == pytest.approx(best_loss(x, w, keep), rel=1e-5)


def test_least_squares_on_masks_against_lstsq_row_by_row():
    x, w, h = problem(6, 5)
    keep = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    keep[3] = False
    solved = least_squares.on_mask(h, w, keep)
    assert not solved[~keep].any()
    for row in range(5):
        if keep[row].any():
            expected = torch.linalg.lstsq(x[:, keep[row]], x @ w[row, :, None]).solution[:, 0]
            assert torch.allclose(solved[row, keep[row]], expected, atol=1e-6)
    again = least_squares.masked_gradient(h, w @ h, torch.zeros_like(w), keep, iterations=200, tolerance=1e-12)
    assert torch.allclose(again, solved, atol=1e-5)


def test_nested_levels_equal_single_solutions():
    x, w, h = problem(8, 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    weights, losses = least_squares.nested(h, w, order, [8, 5, 2, 0])
    assert float(losses[0]) == pytest.approx(0, abs=1e-6)
    for weight, loss, count in zip(weights, losses, [8, 5, 2, 0], strict=True):
        keep = torch.zeros(8, dtype=torch.bool)
        keep[order[:count]] = True
        assert float(loss) == pytest.approx(best_loss(x, w, keep), rel=1e-4, abs=1e-6)
        if count:
            assert torch.allclose(weight[:, torch.argsort(order[:count])], least_squares.on_columns(h, w, keep), atol=1e-8)


def greedy_by_brute_force(problems, n, columns):
    """Remove the group whose true loss (all consumers, best weights) grows least, again and again."""
    gone, losses, before = [], [], 0.0
    for _ in range(n):
        trials = []
        for i in range(n):
            if i in gone:
                continue
            total = 0.0
            for x, w, scale in problems:
                keep = torch.ones(x.shape[1], dtype=torch.bool)
                keep[columns[[*gone, i]].reshape(-1)] = False
                total += scale * best_loss(x, w, keep)
            trials.append((total, i))
        total, i = min(trials)
        gone.append(i)
        losses.append(total - before)
        before = total
    return gone, losses


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("flush", [2, 96])
def test_structured_trace_against_brute_force(group, flush, monkeypatch):
    """Order and true loss of every step, with two consumers of different outputs, and columns that are never removed."""
    monkeypatch.setattr(structured, "FLUSH_COLUMNS", flush)
    n = 5
    d = n * group + 2
    columns = torch.randperm(d, generator=torch.Generator().manual_seed(3))[: n * group].reshape(n, group)
    problems = [(*problem(d, 4, seed)[:2], scale) for seed, scale in ((0, 1.0), (1, 0.3))]
    consumers = [structured.Consumer(hessian.damp(x.T @ x / len(x), 1e-9), w, columns, scale) for x, w, scale in problems]
    order, losses = structured.removal_order(consumers, 0)
    expected, expected_losses = greedy_by_brute_force(problems, n, columns)
    assert order.tolist() == expected
    assert losses.tolist() == pytest.approx(expected_losses, rel=1e-4)


@pytest.mark.parametrize(("rows", "group"), [(1, 1), (1, 2), (2, 2)])
def test_exact_obs_against_brute_force(rows, group):
    n = 6 // group
    x, w, h = problem(6, 2 * rows, seed=5)
    columns = torch.arange(6).reshape(n, group)
    order, losses = exact.removal_orders(h, w.reshape(2, rows, 6), columns, n)
    for block in range(2):
        expected, steps = greedy_by_brute_force([(x, w[block * rows : (block + 1) * rows], 1.0)], n, columns)
        assert order[block].tolist() == expected
        assert losses[block].tolist() == pytest.approx(steps, rel=1e-4)


def test_exact_obs_removes_the_single_best_weight_first():
    """w^2 / [H^-1]_ii is the true growth of the loss, for every weight (Hassibi & Stork)."""
    x, w, h = problem(6, 1, seed=7)
    growth = [best_loss(x, w, torch.arange(6) != i) for i in range(6)]
    formula = w[0].square() / torch.linalg.inv(h).diagonal()
    assert formula.tolist() == pytest.approx(growth, rel=1e-5)
    order, losses = exact.removal_orders(h, w[None], torch.arange(6)[:, None], 1)
    assert int(order) == min(range(6), key=growth.__getitem__)
    assert float(losses) == pytest.approx(min(growth), rel=1e-5)


def test_exact_obs_keeps_to_n_of_m():
    _, w, h = problem(8, 3)
    order, _ = exact.removal_orders(h, w[:, None], torch.arange(8)[:, None], 4, exact.KeepLimits(4, 2))
    keep = torch.ones(3, 8, dtype=torch.bool).scatter(1, order, False)
    assert (keep.reshape(3, 2, 4).sum(2) == 2).all()


def test_choice_over_rows_takes_prefixes_and_the_exact_number():
    order = torch.tensor([[0, 1, 2], [2, 1, 0]])
    losses = torch.tensor([[5.0, 1.0, 9.0], [2.0, 3.0, 4.0]])  # row 0: the second step may not come before the first
    keep = exact.choose(order, losses, 4)
    assert keep.tolist() == [[False, True, True], [False, False, False]]
    assert exact.choose(order, losses, 5).tolist() == [[False, False, True], [False, False, False]]


def test_reverse_factor():
    _, _, h = problem(9, 1)
    r = hessian.reverse_factor(h[None], torch.float64)[0].flip(0, 1)
    assert torch.allclose(r, r.triu())
    assert torch.allclose(r @ r.T, h, rtol=1e-8)
    for j in range(9):  # R_jj^-2 = [(H_{j:,j:})^-1]_jj
        assert float(r[j, j] ** -2) == pytest.approx(float(torch.linalg.inv(h[j:, j:])[0, 0]), rel=1e-8)


def literal_sparsegpt(w, h, sparsity, block, n_of_m=None):
    """Algorithm 1 of the paper, line by line."""
    rows, d = w.shape
    w = w.clone()
    mask = torch.ones(rows, d, dtype=torch.bool)
    inverse = torch.linalg.cholesky(torch.linalg.inv(h)).mT
    for i in range(0, d, block):
        errors = torch.zeros(rows, block, dtype=w.dtype)
        for j in range(i, i + block):
            step = block if n_of_m is None else n_of_m[1]
            if (j - i) % step == 0:
                scores = w[:, j : j + step].square() / inverse.diagonal()[j : j + step].square()
                if n_of_m is None:
                    lowest = scores.reshape(-1).argsort()[: round(sparsity * scores.numel())]
                    part = torch.ones(scores.numel(), dtype=torch.bool)
                    part[lowest] = False
                    mask[:, j : j + step] = part.reshape(scores.shape)
                else:
                    highest = scores.argsort(dim=1, descending=True)[:, : n_of_m[0]]
                    mask[:, j : j + step] = torch.zeros(rows, step, dtype=torch.bool).scatter(1, highest, True)
            errors[:, j - i] = w[:, j] / inverse[j, j] * ~mask[:, j]
            w[:, j : i + block] -= errors[:, j - i, None] * inverse[None, j, j : i + block]
        w[:, i + block :] -= errors @ inverse[i : i + block, i + block :]
    return w * mask, mask


@pytest.mark.parametrize("n_of_m", [None, (2, 4), (1, 4)])
def test_sparsegpt_against_the_literal_algorithm(n_of_m):
    _, w, h = problem(256, 10, seed=4)
    h = hessian.damp(h, 0.01)
    expected, expected_mask = literal_sparsegpt(w, h, 0.5, 128, n_of_m)

    def choose(scores, start):
        g, r, c = scores.shape
        flat = scores.reshape(-1) if n_of_m is None else scores
        remove = round(0.5 * flat.numel()) if n_of_m is None else n_of_m[1] - n_of_m[0]
        keep = torch.ones_like(flat, dtype=torch.bool).scatter(-1, flat.argsort(dim=-1)[..., :remove], False)
        return keep.reshape(g, r, c)

    factor = hessian.reverse_factor(h[None], torch.float64)
    new, mask = sparsegpt.sweep(factor, w[None], choose, group=None if n_of_m is None else n_of_m[1])
    assert torch.equal(mask[0], expected_mask)
    assert torch.allclose(new[0], expected, atol=1e-8)


def test_sparsegpt_on_several_groups_is_each_on_its_own():
    problems = [problem(20, 3, seed) for seed in (0, 1)]
    factor = hessian.reverse_factor(torch.stack([p[2] for p in problems]), torch.float64)
    keep = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(0)) > 0.5
    new, _ = sparsegpt.sweep(factor, torch.stack([p[1] for p in problems]), keep=keep)
    for i in range(2):
        one, _ = sparsegpt.sweep(factor[i : i + 1], problems[i][1][None], keep=keep[i : i + 1])
        assert torch.allclose(new[i], one[0], atol=1e-9)


def test_a_row_updated_by_the_sweep_is_optimal_for_its_last_removals():
    """If only the first columns go, everything to their right makes up for them: the sweep then is least squares."""
    _, w, h = problem(8, 4, seed=9)
    keep = torch.ones(4, 8, dtype=torch.bool)
    keep[:, :3] = False
    new, _ = sparsegpt.sweep(hessian.reverse_factor(h[None], torch.float64), w[None], keep=keep[None])
    assert torch.allclose(new[0], least_squares.on_mask(h, w, keep), atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), d=st.integers(2, 10), r=st.integers(1, 5))
def test_losses_grow_with_every_removal_and_end_at_the_whole(seed, d, r):
    _, w, h = problem(d, r, seed)
    order, losses = structured.removal_order([structured.Consumer(h, w, torch.arange(d)[:, None])], 0)
    assert sorted(order.tolist()) == list(range(d))
    assert (losses >= 0).all()
    assert float(losses.sum()) == pytest.approx(float(((w @ h) * w).sum()), rel=1e-5)


def test_matrices_that_are_not_positive_definite_are_a_failed_candidate():
    with pytest.raises(CandidateFailure, match="not positive definite"):
        hessian.cholesky(-torch.eye(3, dtype=torch.float64))
    with pytest.raises(CandidateFailure):
        hessian.reverse_factor(-torch.eye(3)[None])
    with pytest.raises(CandidateFailure):
        hessian.cholesky(torch.full((2, 2), float("nan"), dtype=torch.float64))


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


def test_all_orders_of_tiny_problems_are_no_better_than_exhaustive_search():
    """Greedy is not optimal, but its losses are true: exhaustive search over supports bounds them from below."""
    x, w, h = problem(5, 3, seed=11)
    order, losses = structured.removal_order([structured.Consumer(h, w, torch.arange(5)[:, None])], 1)
    for removed in range(1, 5):
        best = min(
            best_loss(x, w, ~torch.isin(torch.arange(5), torch.tensor(gone)))
            for gone in itertools.combinations(range(5), removed)
        )
        assert float(losses[:removed].sum()) >= best * (1 - 1e-6)
        if removed == 1:
            assert float(losses[0]) == pytest.approx(best, rel=1e-5)
