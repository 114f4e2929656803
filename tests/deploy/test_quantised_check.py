"""A quantised model that is wrong by more than rounding is named, and refused."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper, numpy_helper

from hwprune.deploy import quantised_check
from hwprune.deploy.quantise import quantise
from hwprune.errors import CandidateFailure
from tests.deploy.test_normalising import draw, model, two_gemms


@pytest.mark.parametrize("fault", ["weight", "bias"])
def test_a_layer_that_is_wrong_by_more_than_rounding_is_named(fault):
    made, x = two_gemms(), draw(80, 16)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(made)
    assert quantised_check.faults(made, wrong, [x]) == []
    tensor = next(item for item in wrong.graph.initializer if item.name == {"weight": "w2", "bias": "b2"}[fault])
    tensor.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(tensor), tensor.name))
    found = quantised_check.faults(made, wrong, [x])
    assert len(found) == 1 and found[0].startswith("g2 (Gemm)")  # not what comes after it


def test_a_wrong_quantiser_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hwprune.deploy.quantise.normalise", lambda _model: None)
    x = draw(80, 16)
    with pytest.raises(CandidateFailure, match="more than rounding explains: g1"):
        quantise(two_gemms(beta=2.0), "int8", lambda: [[x]], tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_numbers_beyond_fp16_are_refused(tmp_path):
    stored = {"w1": draw(16, 64, scale=3e3), "w2": draw(64, 64, scale=3e3), "w3": draw(64, 5, scale=1e-6)}
    node = helper.make_node
    made = model([node("MatMul", ["x", "w1"], ["a"], "m1"), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w2"], ["b"], "m2"),
                  node("Relu", ["b"], ["r2"]), node("MatMul", ["r2", "w3"], ["y"], "m3")], stored)  # fmt: skip
    with pytest.raises(CandidateFailure, match="rounding"):
        quantise(made, "fp16", lambda: [[draw(40, 16)]], tmp_path / "q.onnx")
