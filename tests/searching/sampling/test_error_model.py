"""What is believed of divergences."""

from __future__ import annotations

import numpy as np

from hwprune.searching.sampling.error_model import INTERACTIONS, ErrorModel
from hwprune.searching.sampling.knapsack import KnapsackSampler
from tests.searching.sampling.helpers import Problem


def test_interactions_give_the_whole_quadratic():
    """The items' shares add up to 1/2 mean (sum of responses)^2, computed directly."""
    problem = Problem(7, units=5)
    items = problem.items()
    sampler = KnapsackSampler(items)
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, 7, (20, 5))
    shares = sampler.posterior.divergence.contributions(chosen)
    own = np.stack([sampler.problem.errors[u][chosen[:, u]] for u in range(5)], axis=1)
    for row, levels, alone in zip(shares, chosen, own, strict=True):
        total = sum(problem.responses[u][i] for u, i in enumerate(levels))
        inner = np.array([problem.responses[u][i] @ total / 128 for u, i in enumerate(levels)])
        wanted = alone + INTERACTIONS * (inner - alone)
        np.testing.assert_allclose(row, np.maximum(wanted, 0.2 * alone), rtol=1e-9, atol=1e-15)


def test_sensitivities_are_learned():
    """Without interactions and noise the factors of the items come out, up to the common one."""
    draw = np.random.default_rng(1)
    errors = [np.concatenate([[0.0], np.sort(draw.random(4)) * 0.05]) for _ in range(6)]
    truth = np.exp(draw.normal(0, 0.25, 6))
    chosen = draw.integers(0, 5, (200, 6))
    divergence = np.array([sum(truth[u] * errors[u][i] for u, i in enumerate(row)) for row in chosen])
    model = ErrorModel(errors)
    model.fit(chosen, divergence, np.ones(200))
    found = np.array([factors[0] for factors in model.sensitivities()])
    np.testing.assert_allclose(found / found.mean(), truth / truth.mean(), rtol=0.1)
    again = ErrorModel(errors)
    again.fit(chosen[:50], divergence[:50], np.ones(50))
    again.fit(chosen, divergence, np.ones(200))  # nothing is carried over from fit to fit
    np.testing.assert_array_equal([factors[0] for factors in again.sensitivities()], found)


def test_a_poor_prior_is_noticed():
    draw = np.random.default_rng(2)
    errors = [np.concatenate([[0.0], np.sort(draw.random(4))]) for _ in range(6)]
    chosen = draw.integers(0, 5, (60, 6))
    model = ErrorModel(errors)
    model.fit(chosen, draw.random(60) + 0.1, np.ones(60))  # nothing to do with the errors
    assert model.correlation < 0.5


def test_what_the_law_gets_wrong_of_a_candidate_it_gets_wrong_of_its_neighbours():
    draw = np.random.default_rng(6)
    errors = [np.concatenate([[0.0], np.sort(draw.random(9)) * 0.02]) for _ in range(8)]
    chosen = draw.integers(0, 10, (200, 8))
    size = np.array([sum(errors[u][i] for u, i in enumerate(row)) for row in chosen])
    bend = 0.3 * np.sin(np.sqrt(np.array([[errors[u][row[u]] for u in range(8)] for row in chosen])) @ draw.normal(0, 6, 8))
    divergence = size * np.exp(bend)  # smooth in the errors, but no law of their sum

    def wrong(seen):
        model = ErrorModel(errors)
        model.fit(chosen[:seen], divergence[:seen], np.ones(seen))
        told = model.samples(chosen[150:], draw, 2)[0]
        return float(np.sqrt(np.mean((told - np.log(divergence[150:])) ** 2)))

    model = ErrorModel(errors)
    model.fit(chosen[:150], divergence[:150], np.ones(150))
    again = model.samples(chosen[:150], draw, 2)[0]
    assert np.sqrt(np.mean((again - np.log(divergence[:150])) ** 2)) < 0.1  # what was evaluated is known
    assert wrong(150) < 0.85 * bend[150:].std()


def test_what_is_wrong_of_one_kind_is_learned_from_few_of_it():
    """Compensation repairs what branches did far better than what narrower layers did: a few of them tell it of all."""
    draw = np.random.default_rng(4)
    errors = [np.concatenate([[0.0], np.sort(draw.random(5)) * 0.05]) for _ in range(12)]
    kinds = [np.array([0, 0, 0, 0, 1, 1]) for _ in errors]  # the last two options of each item are of another kind
    chosen = draw.integers(0, 6, (200, 12))
    divergence = np.array([sum(errors[u][i] * (0.2 if kinds[u][i] else 1.0) for u, i in enumerate(row)) for row in chosen])

    def wrong(known):
        model = ErrorModel(errors, kinds=known)
        model.fit(chosen[:10], divergence[:10], np.ones(10))
        told = model.samples(chosen[50:], np.random.default_rng(0), 2)[0]
        return float(np.sqrt(np.mean((told - np.log(divergence[50:])) ** 2)))

    assert wrong(kinds) < 0.5 * wrong(None)
