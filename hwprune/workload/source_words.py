"""A workload's source as one text, and its words: paths may hold spaces and quotes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def join(words: Sequence[str]) -> str:
    """One text; words with spaces or quotes are quoted as a shell does."""
    return shlex.join([word for word in words if word]) if any(_odd(word) for word in words) else " ".join(filter(None, words))


def split(source: str) -> list[str]:
    """The words of a source: what names the workload, then ``key=value``.

    A path with spaces that nobody has quoted (a source that was written in Python) is put together again if it is there.
    """
    try:
        words = shlex.split(source)
    except ValueError:  # a quote that is not closed is part of a name
        words = [word for word in source.split(" ") if word]
    for count in range(len(words), 1, -1):
        path = " ".join(words[:count])
        file, _, function = path.rpartition(":")
        if (file.endswith(".py") and function.isidentifier() and Path(file).is_file()) or (
            path.endswith(".onnx") and Path(path).is_file()
        ):
            return [path, *words[count:]]
    return words


def _odd(word: str) -> bool:
    return any(letter.isspace() or letter in "'\"\\" for letter in word)
