"""Text as windows of tokens, for calibrating and for judging a language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hwprune.errors import UsageError, WorkloadError, described


@dataclass(frozen=True, slots=True)
class TextData:
    """What calibrates and what judges.

    Attributes:
        calibration: a text file; its last quarter judges if ``test`` is None.
        test: another text file.
        length: tokens of a window.
        most: windows that calibrate, at most.
        judged: windows that judge, at most.
    """

    calibration: Path
    test: Path | None = None
    length: int = 512
    most: int = 64
    judged: int = 32

    def read(self, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """(windows, tokens) that calibrate, and those that judge; no token is in both."""
        found = windows(folder, self.calibration, self.length)
        if self.test is not None:
            return _thin(found, self.most), _thin(windows(folder, self.test, self.length), self.judged)
        border = max(1, 3 * len(found) // 4)
        return _thin(found[:border], self.most), _thin(found[border:] if len(found) > 1 else found, self.judged)

    def to_learn(self, folder: Path) -> torch.Tensor:
        """(windows, tokens) of the whole text that calibrates; no token judges."""
        found = windows(folder, self.calibration, self.length)
        return found if self.test is not None else found[: max(1, 3 * len(found) // 4)]

    def between(self, folder: Path) -> torch.Tensor:
        """(windows, tokens) of the text that calibrates which neither calibrate nor judge; there may be none."""
        found = self.to_learn(folder)
        used = set(_places(len(found), self.most))
        return found[[place for place in range(len(found)) if place not in used]]


def windows(folder: str | Path, text: str | Path, length: int) -> torch.Tensor:
    """(windows, length) tokens of a text, as the folder's tokenizer makes them, without gaps; what is left over goes.

    Raises:
        UsageError: the file can't be read, or holds less than one window.
        WorkloadError: the folder's tokenizer can't be loaded.
    """
    path = Path(text)
    if not path.is_file():
        raise UsageError(f"there is no file {path} (--text, looked in {Path.cwd()})")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: {error}") from error
    ids = torch.tensor(tokenizer_of(folder)(content, verbose=False)["input_ids"], dtype=torch.int64)
    count = len(ids) // length
    if count == 0:
        raise UsageError(f"{path} has {len(ids)} tokens, fewer than one window of {length}: --length takes a smaller number")
    return ids[: count * length].view(count, length)


def tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer of a Hugging Face folder. No code that lies in the folder is run. Raises `WorkloadError`."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # a configuration that it doesn't know is no matter for a tokenizer
    try:
        # Without a word on code it asks on the terminal where a folder holds blocks of different sizes.
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # the library raises what it meets
        raise WorkloadError(f"the tokenizer of {folder} can't be loaded: {described(error)}") from error
    finally:
        logging.set_verbosity(before)


def next_tokens(ids: torch.Tensor) -> torch.Tensor:
    """What follows each token; -100 (not counted) at the end of a window."""
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)


def _thin(found: torch.Tensor, most: int) -> torch.Tensor:
    """So many windows, evenly over the text."""
    return found[_places(len(found), most)]


def _places(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else torch.linspace(0, count - 1, most).round().long().tolist()
