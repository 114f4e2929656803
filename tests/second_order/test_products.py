"""Products of which half is computed against whole ones."""

from __future__ import annotations

import pytest
import torch

from hwprune.second_order import products


@pytest.mark.parametrize("shape", [(7, 3), (50, 767), (90, 768), (3, 40, 1601), (2, 2, 30, 900), (0, 800)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gram_matrix_is_the_whole_product(shape, dtype):
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = products.gram(x)
    expected = torch.einsum("...ri,...rj->...ij", x.double(), x.double())
    assert found.dtype is dtype
    assert torch.allclose(found.double(), expected, atol=1e-4 if dtype is torch.float32 else 1e-12)
