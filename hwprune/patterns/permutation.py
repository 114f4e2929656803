"""The order of the input channels that lets N:M keep most.

Channels are dealt into groups of M. A round takes one channel out of every group and deals these out again in the best way:
what each group would keep with each of them is a square matrix, whose best assignment is exact (Hungarian method). Leaving all
as they were is one of the assignments, so no round makes it worse. The assignment step is the one of RIA (Zhang et al. 2024,
section 4.2); there it is done once after a greedy deal, here it is repeated until a whole turn of the places brings nothing.
"""

from __future__ import annotations

import torch

from hwprune.errors import UsageError

CHUNK = 16_000_000
"""Scores compared at once."""


def search(scores: torch.Tensor, n: int, m: int, rounds: int = 100, seed: int = 0) -> torch.Tensor:
    """The order in which to put the channels.

    Args:
        scores: (rows, channels), >= 0; rows are all outputs and kernel positions that read the channels.
        n, m: of each m channels in a row n are kept.
        rounds: limit of the rounds.

    Returns:
        (channels,) int64: the channel that comes to each place. It keeps at least what the given order keeps.

    Raises:
        UsageError: the number of channels is no multiple of m.
    """
    from scipy.optimize import linear_sum_assignment  # a second of imports that no other part needs

    channels = scores.shape[1]
    if channels % m:
        raise UsageError(f"{channels} channels can't be put into groups of {m}")
    scores = scores.detach().double()
    groups = torch.arange(channels).reshape(-1, m)
    generator = torch.Generator().manual_seed(seed)
    idle = 0
    for number in range(rounds):
        places = torch.randint(m, (len(groups),), generator=generator)
        if number % (m + 1) < m:  # most rounds take one place of every group
            places = torch.full((len(groups),), number % (m + 1))
        every = torch.arange(len(groups))
        out = groups[every, places]
        others = torch.stack([group[torch.arange(m) != place] for group, place in zip(groups, places, strict=True)])
        gain = _gains(scores, others, out, n)
        dealt = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
        before, after = float(gain.diagonal().sum()), float(gain[every, dealt].sum())
        if after > before * (1 + 1e-12):
            groups[every, places] = out[dealt]
            idle = 0
        else:
            idle += 1
            if idle > m:
                break
    order = groups.sort(dim=1).values
    order = order[order[:, 0].argsort()].reshape(-1)
    return order if kept(scores, order, n, m) >= kept(scores, torch.arange(channels), n, m) else torch.arange(channels)


def kept(scores: torch.Tensor, order: torch.Tensor, n: int, m: int) -> float:
    """Sum of the scores that n:m keeps when the channels stand in ``order``."""
    groups = scores[:, order].double().reshape(len(scores), -1, m)
    return float(groups.topk(n, dim=2).values.sum())


def _gains(scores: torch.Tensor, others: torch.Tensor, out: torch.Tensor, n: int) -> torch.Tensor:
    """The score that group i keeps if it gets channel ``out[j]``, (groups, groups).

    With the other m - 1 channels given, a new score x adds max(x, the n-th highest of them) to the n - 1 highest.
    """
    stay = scores[:, others]  # (rows, groups, m - 1)
    ordered = stay.sort(dim=2, descending=True).values
    sure = ordered[:, :, : n - 1].sum(dim=(0, 2))
    edge = ordered[:, :, n - 1]  # (rows, groups)
    fresh = scores[:, out]  # (rows, groups)
    count = len(out)
    gains = torch.zeros(count, count, dtype=torch.float64)
    step = max(1, CHUNK // max(1, count * count))
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        gains += torch.maximum(edge[part, :, None], fresh[part, None, :]).sum(dim=0)
    return gains + sure[:, None]
