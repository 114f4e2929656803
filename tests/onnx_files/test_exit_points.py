"""Places to divide a model: borders of blocks, found without hints, and halves that give what the whole gives."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hwprune.onnx_files import exit_points


class Block(nn.Module):
    def __init__(self, width=16, heads=2):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow, self.heads = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), heads

    def forward(self, x, mask):
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(x)))


class Encoder(nn.Module):
    """A text encoder whose attention mask crosses every border."""

    def __init__(self):
        super().__init__()
        self.words, self.blocks, self.end = nn.Embedding(50, 16), nn.ModuleList(Block() for _ in range(4)), nn.Linear(16, 3)

    def forward(self, ids, mask):
        x = self.words(ids)
        shown = (1 - mask[:, None, None, :].float()) * -1e4
        for block in self.blocks:
            x = block(x, shown)
        return self.end(x[:, 0])


class Skipping(nn.Module):
    """A U-shape: between its halves two tensors cross everywhere."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.d = nn.Linear(4, 2)

    def forward(self, x):
        first = torch.relu(self.a(x))
        return self.d(torch.relu(self.c(torch.cat([first, torch.relu(self.b(first))], 1))).mean((2, 3)))


def _exported(module, inputs, dynamic):
    torch.manual_seed(0)
    return torch.onnx.export(module.eval(), inputs, dynamo=True, dynamic_shapes=dynamic, verbose=False).model_proto


def _run(model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, dict(zip([one.name for one in session.get_inputs()], inputs, strict=True)))


@pytest.fixture(scope="module")
def encoder():
    inputs = (torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.long))
    return _exported(Encoder(), inputs, ({0: "batch"}, {0: "batch"}))


def test_borders_of_blocks_are_found_with_the_mask_that_crosses(encoder):
    names = [item.name for item in encoder.graph.input]
    points = exit_points.find(encoder, dict.fromkeys(names, (1, 7)))
    assert [point.shape for point in points].count((1, 7, 16)) >= 7  # after each attention, and each network behind it
    inner = [point for point in points if 0.2 < point.share < 0.8]
    assert all(len(point.others) == 1 for point in inner)
    shares = [point.share for point in points]
    assert shares == sorted(shares) and len(set(shares)) == len(shares)
    chosen = exit_points.proposed(points, (0.2, 0.5, 0.5, 0.65))
    assert 2 <= len(chosen) <= 3 and abs(chosen[1].share - 0.5) < 0.1


def test_halves_give_what_the_whole_gives(encoder):
    names = [item.name for item in encoder.graph.input]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (3, 7), generator=generator).numpy()
    mask = (torch.arange(7)[None] < torch.tensor([[7], [4], [2]])).long().numpy()
    (wanted,) = _run(encoder, [ids, mask])
    for point in exit_points.proposed(exit_points.find(encoder, dict.fromkeys(names, (1, 7))), (0.2, 0.5, 0.8)):
        (features,) = _run(exit_points.features(encoder, point), [ids, mask])
        assert features.shape == (3, 32)  # means, and the first token
        weight, bias = np.ones((3, 32), np.float32), np.array([1.0, 2.0, 3.0])
        first, second = exit_points.halves(encoder, point, weight, bias)
        answer, *crossing = _run(first, [ids, mask])
        assert answer == pytest.approx(features @ weight.T + bias, rel=1e-4)
        own = [dict(zip(names, (ids, mask), strict=True))[item.name] for item in second.graph.input if item.name in names]
        (found,) = _run(second, [*crossing, *own])
        assert found == pytest.approx(wanted, abs=1e-5)
        assert _run(exit_points.without_crossing(first), [ids, mask])[0] == pytest.approx(answer)
        (likely, *_) = _run(exit_points.halves(encoder, point, weight, bias, "Softmax")[0], [ids, mask])
        assert likely.sum(axis=1) == pytest.approx(1.0)


def test_no_place_is_made_up_where_two_tensors_cross():
    model = _exported(Skipping(), (torch.randn(2, 1, 6, 6),), ({0: "batch"},))
    points = exit_points.find(model, {model.graph.input[0].name: (1, 1, 6, 6)})
    # The first convolution's end, the concatenation of what crosses until then, and the last convolution.
    assert [point.shape for point in points][:2] == [(1, 4, 6, 6), (1, 8, 6, 6)]
    assert exit_points.proposed([], (0.5,)) == []
