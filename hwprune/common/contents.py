"""The bytes of a tensor, for fingerprints."""

from __future__ import annotations

import torch


def content(tensor: torch.Tensor) -> bytes:
    """The values one after the other, whatever the tensor's type and strides.

    A single element counts as contiguous with any stride, 0 too, and then can't be looked at as bytes: hence the copy.
    """
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.detach().reshape(-1))
    found: bytes = flat.view(torch.uint8).numpy().tobytes()
    return found
