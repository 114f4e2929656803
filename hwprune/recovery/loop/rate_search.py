"""The search for a learning rate by short trainings."""

from __future__ import annotations

TRIED_FROM = 40
"""Steps from which on a learning rate is searched for."""
TRIED_SHARE, TRIED_LEAST, TRIED_MOST = 0.03, 8, 40
"""Steps of one trial of a learning rate: share of all, and its bounds."""
LONGER, LONGEST_SHARE = 4, 0.3
"""Trials that bring little are made again so many times longer, from the rate that they found; none longer than this share of all
steps."""
HELD_BACK = 4
"""Batches that such a trial is judged by."""
