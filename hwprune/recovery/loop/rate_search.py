"""The search for a learning rate by short trainings."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch

from hwprune.recovery.loop import rates
from hwprune.recovery.loop.stepping import Stepper
from hwprune.recovery.loop.training import NotFinite
from hwprune.recovery.plan import default_rate
from hwprune.recovery.sparsifiers.base import State

TRIED_FROM = 40
"""Steps from which on a learning rate is searched for."""
TRIED_SHARE, TRIED_LEAST, TRIED_MOST = 0.03, 8, 40
"""Steps of one trial of a learning rate: share of all, and its bounds."""
LONGER, LONGEST_SHARE = 4, 0.3
"""Trials that bring little are made again so many times longer, from the rate that they found.

None is longer than this share of all steps.
"""
HELD_BACK = 4
"""Batches that such a trial is judged by."""


def find_rate(stepper: Stepper, own: State) -> float:
    """The plan's rate, or the best of short trials; without them where the training is short itself.

    Where sparsity rises, all of it comes with the first step of a trial: what counts is how fast a model learns that has lost
    what this one will. A larger rate must then bring clearly more (see `rates.MARGIN_RISING`). Weights, masks and the
    state are as before afterwards.

    Args:
        own: the sparsifier's state at the start.
    """
    training, state, loss = stepper.training, stepper.state, stepper.loss
    first = training.plan.rate or default_rate(training.plan, normed=loss.normed)
    total = stepper.steps()[1]
    if training.plan.rate is not None or total < TRIED_FROM:
        return first
    steps = min(max(round(TRIED_SHARE * total), TRIED_LEAST), TRIED_MOST)
    rising = training.raises_sparsity
    if training.sparsifier is not None and rising:
        training.sparsifier.short_trial = True
    start = training.weights()
    best = partial(rates.best, margin=rates.MARGIN_RISING if rising else rates.MARGIN)

    def loss_of(rate: float) -> float:
        training.load(start)
        training.restore_sparsifier(own)
        state.rate, state.step = rate, 0
        optimizer = stepper.optimizer()
        stepper.batches.begin(0)
        batches = itertools.chain.from_iterable(map(stepper.batches.of, itertools.count()))
        try:
            for _ in range(steps):
                group = list(itertools.islice(batches, training.plan.accumulate))
                stepper.step(group, optimizer, steps, at_once=rising)
            loss.train(mode=False)
            with torch.no_grad():
                losses = torch.stack([loss(*batch) for batch in itertools.islice(batches, HELD_BACK)])
        except NotFinite:
            return math.inf
        return float(losses.mean()) if bool(torch.isfinite(losses).all()) else math.inf

    try:
        best_trial = best(loss_of, first)
        longer = min(LONGER * steps, round(LONGEST_SHARE * total))
        if best_trial.little and longer > steps:
            steps = longer
            # From there upwards, and from the first rate: what a few steps prefer may be too much for many.
            best_trial = max(
                (best(loss_of, rate) for rate in dict.fromkeys((best_trial.rate, first))), key=lambda trial: trial.share
            )
        return best_trial.rate
    finally:
        training.load(start)
        if training.sparsifier is not None:
            training.sparsifier.short_trial = False
        training.restore_sparsifier(own)
        state.step = 0
        state.forget_steps()
