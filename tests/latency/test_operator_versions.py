"""Signatures tell operators apart that have one name: local functions by their bodies, others by the version of their meaning."""

from __future__ import annotations

from dataclasses import replace

from onnx import TensorProto, helper

from hwprune.latency.splitting import split


def one_node(opset=20, node=None, functions=(), domains=(), shape=(2, 4, 8)):
    """The only segment of a model with one node on ``x``."""
    graph = helper.make_graph(
        [node or helper.make_node("Softmax", ["x"], ["y"], axis=-1)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*domain) for domain in domains)]
    (piece,) = split(helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions))
    return piece


def local(body, name="f", opset=20, domains=()):
    """A function of one input and one output of the domain ``here``."""
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*domain) for domain in domains)]
    return helper.make_function("here", name, ["a"], ["b"], body, opsets)


def test_signature_holds_the_bodies_of_the_functions_that_are_called():
    call, domain = helper.make_node("f", ["x"], ["y"], domain="here"), [("here", 1)]
    relu, tanh = (helper.make_node(kind, ["a"], ["b"]) for kind in ("Relu", "Tanh"))
    with_relu, with_tanh = (one_node(node=call, functions=[local([body])], domains=domain) for body in (relu, tanh))
    assert with_relu.signature != with_tanh.signature
    unused = local([tanh], "unused")
    assert one_node(node=call, functions=[local([relu]), unused], domains=domain).signature == with_relu.signature
    assert one_node(functions=[unused], domains=domain).signature == one_node().signature
    outer = local([helper.make_node("f", ["a"], ["b"], domain="here")], "outer", domains=domain)
    nested = [
        one_node(node=helper.make_node("outer", ["x"], ["y"], domain="here"), functions=[local([body]), outer], domains=domain)
        for body in (relu, tanh)
    ]
    assert nested[0].signature != nested[1].signature


def test_signature_holds_the_version_of_operators_that_changed():
    def relu(opset):
        return one_node(opset, helper.make_node("Relu", ["x"], ["y"])).signature

    def cast(opset):
        return one_node(opset, helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)).signature

    assert relu(17) == relu(20)  # the operator is that of opset 14
    assert one_node(12).signature != one_node(13).signature  # Softmax flattened everything from its axis on
    assert cast(17) != cast(20)  # other attributes since 19

    def fused(version):
        node = helper.make_node("FastGelu", ["x"], ["y"], domain="com.microsoft")
        return replace(one_node(), nodes=(node,), opsets=(("", 20), ("com.microsoft", version))).signature

    assert fused(1) != fused(2)
