"""Attention of a decoder in fewer operators: the same numbers, and nothing else is touched."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hwprune.onnx_files import tidy
from hwprune.onnx_files.attention_form import simplify_decoder_attention


class Decoder(nn.Module):
    def __init__(self, causal=True):
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.parts, self.out = causal, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        queries, keys, values = self.parts(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if self.causal else None
        made = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=0.3)
        return self.out(made.transpose(1, 2).flatten(2)).softmax(-1)  # the last softmax is none of attention


def exported(causal):
    length = torch.export.Dim("length", min=2, max=50)
    with tidy.quiet(), torch.no_grad():
        program = torch.onnx.export(
            Decoder(causal), (torch.zeros(2, 5, 16),), dynamo=True, verbose=False, opset_version=20, dynamic_shapes=({1: length},)
        )
    proto = program.model_proto
    tidy.strip(proto)
    return proto


def run(proto, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # its fusions would hide ours
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("causal", [True, False])
def test_it_computes_the_same_with_fewer_operators(causal):
    proto = exported(causal)
    before, x = onnx.ModelProto(), np.random.default_rng(0).normal(size=(2, 9, 16)).astype(np.float32)
    before.CopyFrom(proto)
    assert simplify_decoder_attention(proto) == 1
    onnx.checker.check_model(proto)
    counts = [Counter(node.op_type for node in one.graph.node) for one in (before, proto)]
    assert counts[1]["IsNaN"] == 0 and counts[1]["Reshape"] <= counts[0]["Reshape"] - 2 and counts[1]["Softmax"] == 2
    assert {item.name for item in proto.graph.initializer} <= {name for node in proto.graph.node for name in node.input}
    np.testing.assert_allclose(run(proto, x), run(before, x), rtol=1e-5, atol=1e-6)
    again = onnx.ModelProto()
    again.CopyFrom(proto)
    assert simplify_decoder_attention(again) == 0 and again == proto  # what is simple stays


def decoder(*, shared):
    """Attention as the exporter writes it; ``shared``: the scaled queries meet other keys, too, and a branch reads something."""
    make, draw = onnx.helper.make_node, np.random.default_rng(0)
    stored = {
        "scale": np.array([0.5], np.float32), "flat": np.array([-1, 5, 4]), "back": np.array([2, 3, 4, 5]),
        "others": draw.normal(size=(2, 3, 4, 6)).astype(np.float32), "yes": np.array(True),
    }  # fmt: skip
    nodes = [
        make("Mul", ["q", "scale"], ["scaled"]), make("Reshape", ["k", "flat"], ["k1"]), make("Transpose", ["k1"], ["k2"], perm=[0, 2, 1]),
        make("Reshape", ["k2", "back"], ["k3"]), make("Mul", ["k3", "scale"], ["keys"]), make("MatMul", ["scaled", "keys"], ["scores"]),
        make("Softmax", ["scores"], ["shares"], axis=-1), make("IsNaN", ["shares"], ["bad"]),
        make("Where", ["bad", "scale", "shares"], ["kept"]), make("MatMul", ["kept", "v"], ["out"]),
    ]  # fmt: skip
    info, outputs = onnx.helper.make_tensor_value_info, ["out"]
    if shared:
        body = onnx.helper.make_graph([make("Identity", ["beside"], ["chosen"])], "b", [], [info("chosen", 1, None)])
        nodes += [
            make("MatMul", ["scaled", "others"], ["more"]), make("Neg", ["q"], ["beside"]),
            make("If", ["yes"], ["branch"], then_branch=body, else_branch=body),
        ]  # fmt: skip
        outputs += ["more", "branch"]
    shapes = {"q": [2, 3, 5, 4], "k": [2, 3, 5, 4], "v": [2, 3, 5, 4]}
    graph = onnx.helper.make_graph(
        nodes, "g", [info(name, 1, shape) for name, shape in shapes.items()], [info(name, 1, None) for name in outputs],
        [onnx.numpy_helper.from_array(x, name) for name, x in stored.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("shared", [False, True])
def test_what_others_read_stays(shared):
    proto, before, draw = decoder(shared=shared), decoder(shared=shared), np.random.default_rng(1)
    given = {name: draw.normal(size=(2, 3, 5, 4)).astype(np.float32) for name in "qkv"}
    assert simplify_decoder_attention(proto) == 1
    found, wanted = (
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)
        for one in (proto, before)
    )
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
