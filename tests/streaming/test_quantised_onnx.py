"""Weights of fewer bits: what is stored is what was there, as near as the bits allow, and perplexity is that of the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from hwprune.errors import RunError, UsageError
from hwprune.streaming.assembled_onnx import write_assembled
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.quantised_onnx import parse, window_losses, write_quantised
from hwprune.workload.text_windows import windows
from tests.streaming.helpers import llama, losses, text, whole


class Dense:
    def __init__(self, place):
        self.folder = llama(place / "model", depth=2, hidden=64, neurons=128, heads=4)
        self.ids = windows(self.folder, text(place / "words.txt"), 16)[:4]
        self.file = place / "model.onnx"
        self.shape = write_assembled(LanguageFolder(self.folder), self.file)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return Dense(tmp_path_factory.mktemp("dense"))


def test_the_loss_is_that_of_the_file(dense):
    found = window_losses(dense.file, dense.ids)
    torch.testing.assert_close(found, losses(whole(dense.folder), dense.ids), rtol=1e-5, atol=0)


def by_hand(model, name):
    """The matrix (inputs, outputs) that a product's codes and scales stand for."""
    node = next(one for one in model.graph.node if one.op_type == "MatMulNBits" and name in one.input[1])
    told = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    codes, scales = stored[node.input[1]].reshape(told["N"], -1), stored[node.input[2]].reshape(told["N"], -1)
    if told["bits"] == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(told["N"], -1)
    middle = 2 ** (told["bits"] - 1)
    scales = np.repeat(scales, told["block_size"], axis=1)
    return ((codes.astype(np.float32) - middle) * scales)[:, : told["K"]].T, scales[:, : told["K"]].T


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_weights_are_the_nearest_that_the_bits_allow(dense, tmp_path, precision, bits):
    out = tmp_path / "model.onnx"
    assert write_quantised(dense.file, precision, out) == 2 * 7 + 1  # the output layer too, which is tied to the embedding
    model = onnx.load(out)
    makers = {name: node for node in model.graph.node for name in node.output}
    counted = [onnx.helper.get_node_attr_value(node, "bits") for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert onnx.helper.get_node_attr_value(makers["logits"], "bits") == 8 and sorted(counted) == [bits] * 14 + [8]
    wanted = whole(dense.folder).model.layers[1].mlp.down_proj.weight.detach().numpy().T
    found, scales = by_hand(model, "block.1.mlp.down_proj")
    assert np.abs(found - wanted).max() <= 0.51 * np.abs(scales).max() + (bits == 4) * np.abs(scales).max()  # the end is clipped
    assert np.square(found - wanted).mean() < np.square(np.abs(scales).mean())
    kinds = {item.data_type for item in model.graph.initializer if list(item.dims) == [62, 64]}  # the embedding
    assert TensorProto.FLOAT not in kinds
    found_losses = window_losses(out, dense.ids)
    dense_losses = losses(whole(dense.folder), dense.ids)
    assert not torch.equal(found_losses, dense_losses)
    assert float((found_losses - dense_losses).abs().max() / dense_losses.mean()) < {8: 0.03, 4: 0.4}[bits]


def test_a_files_cache_is_read_from_it(dense):
    assert CacheShape.of_file(dense.file) == dense.shape


def test_what_can_not_be_is_told(tmp_path):
    with pytest.raises(UsageError, match="takes int8, int4, got 'int3'"):
        parse("int8,int3")
    assert parse("int4,int8,int4") == ("int4", "int8")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(RunError, match=r"broken\.onnx does not run"):
        window_losses(tmp_path / "broken.onnx", torch.zeros(1, 4, dtype=torch.int64))
