"""What is believed of units and recipes after the trials so far."""

from __future__ import annotations

SAMPLES = 24
"""Posterior samples over which the expected improvement is averaged."""
