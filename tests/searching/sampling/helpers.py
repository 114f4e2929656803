"""What several test files of this folder need."""

from __future__ import annotations

import numpy as np
import optuna

from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.problem import Choice, Item


class Problem:
    """Twelve units whose true errors differ from the prior by a factor each, with responses that interact."""

    def __init__(self, seed, units=12, levels=6, spread=0.5):
        draw = np.random.default_rng(seed)
        self.saved = [np.concatenate([[0.0], np.sort(draw.random(levels)) * draw.uniform(0.02, 0.1)]) for _ in range(units)]
        scale = draw.lognormal(0, 1, units)
        directions = draw.standard_normal((units, 64))
        self.responses = [
            np.stack([directions[u] * np.sqrt(0.02 * scale[u] * (i / levels) ** 2) for i in range(levels + 1)])
            for u in range(units)
        ]
        self.truth = draw.lognormal(0, spread, units)

    def items(self):
        found = []
        for u, (saved, rows) in enumerate(zip(self.saved, self.responses, strict=True)):
            choices = [
                Choice({f"u{u}": i}, float(np.square(row).mean()) / 2, float(s), {}, row)
                for i, (s, row) in enumerate(zip(saved, rows, strict=True))
            ]
            found.append(Item(f"u{u}", tuple(choices)))
        return found

    def divergence(self, levels):
        total = sum(np.sqrt(self.truth[u]) * self.responses[u][i] for u, i in enumerate(levels))
        return 0.4 * float(np.square(total).mean()) / 2

    def evaluate(self, levels):
        kl = self.divergence(levels)
        ratio = 1 - 0.9 * sum(self.saved[u][i] for u, i in enumerate(levels))
        return kl, 0.15 * np.sqrt(kl), ratio

    def run(self, sampler, count, names=None):
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        space = KnapsackSampler(self.items()).distributions()

        def objective(trial):
            levels = [trial.suggest_int(f"u{u}", 0, space[f"u{u}"].high) for u in range(len(self.saved))]
            kl, drop, ratio = self.evaluate(levels)
            trial.set_user_attr("divergence", kl)
            return drop, 1 / ratio

        study.optimize(objective, n_trials=count)
        return study
