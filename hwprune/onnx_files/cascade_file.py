"""Two ONNX models in one file: the second runs in a branch of an ``If``, where the first is not sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from hwprune.errors import UsageError

FIRST, SECOND = "first/", "second/"
TINY = 1e-7


def with_if(first: onnx.ModelProto, second: onnx.ModelProto, decision: Mapping[str, Any]) -> onnx.ModelProto:
    """One model with the interface of ``first``.

    A batch goes on as a whole unless every example of it is sure: one file can't divide it.

    Args:
        decision: see `hwprune.latency.cascade_runner.ExitRule`.

    Raises:
        UsageError: the models differ in their inputs, outputs or operators' versions.
    """
    _same_interface(first, second)
    opsets = _opsets(first, second)
    a = compose.add_prefix(first, FIRST, rename_inputs=False, rename_outputs=True).graph
    b = compose.add_prefix(second, SECOND, rename_inputs=False, rename_outputs=True).graph
    outputs = [item.name for item in first.graph.output]
    nodes = [*a.node, *_confident(decision, FIRST + outputs[int(decision["output"])], first)]
    stays = helper.make_graph(
        [helper.make_node("Identity", [FIRST + name], [f"stays/{name}"]) for name in outputs], "sure", [],
        [_typed(item, f"stays/{item.name}") for item in first.graph.output],
    )  # fmt: skip
    goes_on = helper.make_graph(
        list(b.node), "not_sure", [], [_typed(item, item.name) for item in b.output], initializer=list(b.initializer)
    )
    goes_on.sparse_initializer.extend(b.sparse_initializer)
    nodes.append(helper.make_node("If", ["decision/sure"], outputs, name="goes_on", then_branch=stays, else_branch=goes_on))
    graph = helper.make_graph(
        nodes, "cascade", list(first.graph.input), list(first.graph.output), [*a.initializer, *_constants(decision)]
    )
    graph.sparse_initializer.extend(a.sparse_initializer)
    model = helper.make_model(graph, opset_imports=opsets, producer_name="hwprune")
    model.ir_version = max(first.ir_version, second.ir_version)
    functions = {(f.domain, f.name): f for f in (*first.functions, *second.functions)}
    model.functions.extend(functions.values())
    return _checked(model)


def with_exit(first: onnx.ModelProto, second: onnx.ModelProto, decision: Mapping[str, Any]) -> onnx.ModelProto:
    """One model of the two halves that `hwprune.onnx_files.exit_points.halves` made; a batch goes on as a whole.

    Args:
        decision: see `hwprune.latency.cascade_runner.ExitRule`.
    """
    answer = first.graph.output[0]
    early, late = f"early/{answer.name}", f"late/{answer.name}"
    nodes = [_renamed(node, answer.name, early) for node in first.graph.node]
    nodes += _confident(decision, early, first)
    shared = {item.name for item in first.graph.initializer}
    # Constants of both halves are there already.
    made = {name for node in first.graph.node for name in node.output} - {answer.name}
    stays = helper.make_graph([helper.make_node("Identity", [early], ["stays"])], "sure", [], [_typed(answer, "stays")])
    goes_on = helper.make_graph(
        [_renamed(node, answer.name, late) for node in second.graph.node if not made.issuperset(node.output)],
        "not_sure", [], [_typed(answer, late)],
        initializer=[item for item in second.graph.initializer if item.name not in shared],
    )  # fmt: skip
    nodes.append(helper.make_node("If", ["decision/sure"], [answer.name], name="goes_on", then_branch=stays, else_branch=goes_on))
    graph = helper.make_graph(
        nodes, "early_exit", list(first.graph.input), [answer], [*first.graph.initializer, *_constants(decision)]
    )
    model = helper.make_model(graph, opset_imports=list(first.opset_import), producer_name="hwprune")
    model.ir_version = first.ir_version
    model.functions.extend(first.functions)
    return _checked(model)


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Raises `UsageError` for what is no valid model."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UsageError(f"the two can't be in one file: {str(error).splitlines()[0]}") from error
    return model


def _renamed(node: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    """The node with one of its outputs, and of its inputs, under another name."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    for names in (made.input, made.output):
        for place, name in enumerate(names):
            if name == old:
                names[place] = new
    return made


def _constants(decision: Mapping[str, Any]) -> list[TensorProto]:
    values = {"temperature": decision["temperature"], "threshold": decision["threshold"]}
    if decision["probabilities"]:
        values |= {"tiny": TINY} if decision["axis"] is not None else {"tiny": TINY, "below": 1 - TINY, "one": 1.0}
    return [numpy_helper.from_array(np.asarray(value, np.float32), f"decision/{name}") for name, value in values.items()]


def _confident(decision: Mapping[str, Any], answer: str, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes from the answer to one bool: is every example sure?"""
    kind = model.graph.output[int(decision["output"])].type.tensor_type.elem_type
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        made = f"decision/{name}"
        nodes.append(helper.make_node(operator, inputs, [made], name=made, **attributes))
        return made

    value = answer if kind == TensorProto.FLOAT else add("Cast", [answer], "float", to=TensorProto.FLOAT)
    temperature, threshold = "decision/temperature", "decision/threshold"
    if decision["axis"] is None:
        if decision["probabilities"]:
            likely = add("Clip", [value, "decision/tiny", "decision/below"], "clipped")
            no = add("Sub", ["decision/one", likely], "no")
            value = add("Sub", [add("Log", [likely], "log_yes"), add("Log", [no], "log_no")], "logit")
        likely = add("Sigmoid", [add("Abs", [add("Div", [value, temperature], "scaled")], "absolute")], "likely")
    else:
        if decision["probabilities"]:
            value = add("Log", [add("Max", [value, "decision/tiny"], "positive")], "log")
        axis = int(decision["axis"])
        likely = add("Softmax", [add("Div", [value, temperature], "scaled")], "probabilities", axis=axis)
        likely = _largest(add, likely, axis, model)
    least = add("ReduceMin", [likely], "least", keepdims=0)
    add("GreaterOrEqual", [least, threshold], "sure")
    return nodes


def _largest(add: Any, name: str, axis: int, model: onnx.ModelProto) -> str:
    """The maximum along a dim; the dim is an attribute before opset 18, and an input since."""
    version = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if version < 18:
        return str(add("ReduceMax", [name], "largest", axes=[axis], keepdims=0))
    axes = add("Constant", [], "axes", value=numpy_helper.from_array(np.asarray([axis], np.int64)))
    return str(add("ReduceMax", [name, axes], "largest", keepdims=0))


def _typed(item: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(item)
    made.name = name
    return made


def _same_interface(first: onnx.ModelProto, second: onnx.ModelProto) -> None:
    for what in ("input", "output"):
        mine, theirs = ([(x.name, x.type.tensor_type.elem_type) for x in getattr(m.graph, what)] for m in (first, second))
        if mine != theirs:
            raise UsageError(f"the two models have other {what}s ({mine} and {theirs}): they can't be in one file")


def _opsets(first: onnx.ModelProto, second: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    found: dict[str, int] = {}
    for item in (*first.opset_import, *second.opset_import):
        domain = "" if item.domain == "ai.onnx" else item.domain
        if found.setdefault(domain, item.version) != item.version:
            raise UsageError(
                f"the two models use versions {found[domain]} and {item.version} of the operators of {domain or 'ONNX'}"
            )
    return [helper.make_opsetid(domain, version) for domain, version in found.items()]
