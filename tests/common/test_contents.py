"""The bytes of a tensor, whatever its type and strides."""

from __future__ import annotations

import pytest
import torch

from hwprune.common.contents import content

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_type(dtype):
    x = torch.tensor([[0, 1, 1], [0, 0, 1]]).to(dtype)
    assert len(content(x)) == 6 * x.element_size()
    assert content(x) == content(x.clone()) == content(x.T.contiguous().T)
    assert content(x) != content(x.T)
    assert content(x.flip(0)) != content(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_element_without_stride(dtype):
    """An ONNX constant of one entry, expanded: torch calls it contiguous, and won't look at its bytes."""
    one = torch.ones(()).to(dtype).expand(1)
    assert one.stride() == (0,) and content(one) == content(torch.ones(1).to(dtype))
    assert content(torch.ones(()).to(dtype).expand(3)) == 3 * content(one)


def test_nothing_and_parameters():
    assert content(torch.empty(0)) == b""
    parameter = torch.nn.Parameter(torch.ones(2))
    assert content(parameter) == content(torch.ones(2))
