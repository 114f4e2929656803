"""Telling how far something is, for whoever draws it."""

from __future__ import annotations

from typing import Protocol


class Tell(Protocol):
    """Called when something that takes a while begins, and as it goes on."""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        """What is done, and how far it is; ``total`` 0: nobody knows."""


def silent(text: str, done: int = 0, total: int = 0) -> None:
    """A `Tell` that tells nobody."""
    del text, done, total
