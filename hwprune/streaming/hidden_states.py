"""What flows from one block to the next, for all windows, in a file."""

from __future__ import annotations

from pathlib import Path

import torch


class HiddenStates:
    """(windows, tokens, width) numbers in a file that is mapped into memory: what is not looked at needs none.

    Args:
        path: the file; it is made if it isn't there.
        shape: (windows, tokens, width).
        dtype: float32, or bfloat16 at half the size.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.path, self.shape = path, shape
        count = shape[0] * shape[1] * shape[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._data = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: int) -> torch.Tensor:
        """(1, tokens, width) of one window, in 32 bits."""
        return self._data[index : index + 1].float()

    def write(self, index: int, value: torch.Tensor) -> None:
        """Keep what a block made of one window."""
        self._data[index] = value[0].to(self._data.dtype)

    def remove(self) -> None:
        """Delete the file."""
        del self._data
        self.path.unlink(missing_ok=True)


class Channels(HiddenStates):
    """Some channels of others, to be read."""

    def __init__(self, whole: HiddenStates, kept: torch.Tensor) -> None:
        self.whole, self.kept = whole, kept
        self.path, self.shape = whole.path, (*whole.shape[:2], len(kept))

    def read(self, index: int) -> torch.Tensor:
        """(1, tokens, kept channels) of one window, in 32 bits."""
        return self.whole.read(index)[..., self.kept]

    def write(self, index: int, value: torch.Tensor) -> None:
        """They are for reading alone."""
        raise NotImplementedError
