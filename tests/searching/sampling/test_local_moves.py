"""How often each kind of proposal succeeded."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("seed", range(5))
def test_kinds_are_trusted_by_how_often_they_came_to_the_front(seed):
    from hwprune.searching.sampling.history import History
    from hwprune.searching.sampling.local_moves import PRIOR_SUCCESSES, PRIOR_TRIES, success_rates

    draw = np.random.default_rng(seed)
    ratio, drop = draw.random(60).round(1), draw.random(60).round(1)  # ties too
    kinds = draw.choice(["mean", "move", ""], 60).tolist()
    ratio[::13] = np.nan
    found = success_rates(History(ratio=ratio.tolist(), kind=kinds), drop)
    for kind in ("mean", "move"):
        tried = [i for i in range(60) if kinds[i] == kind and np.isfinite(ratio[i])]
        won = [i for i in tried if not any(ratio[j] <= ratio[i] and drop[j] <= drop[i] for j in range(i))]
        assert found[kind] == pytest.approx((len(won) + PRIOR_SUCCESSES) / (len(tried) + PRIOR_TRIES))
    assert "" not in found
