"""A model with a cache in the form for which OpenVINO has kernels: ScaledDotProductAttention, its cache and its beams beside it.

From ONNX files OpenVINO makes products and softmaxes of attention, and copies and repeats the whole cache for every token; what
Optimum exports from PyTorch has the one operator. So it is put in here, and around it what makes OpenVINO fuse it with the
state: a choice of beams before the cache, and a state that begins without tokens. The names of the inputs are Optimum's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

MASK, POSITIONS, BEAMS = "attention_mask", "position_ids", "beam_idx"
HIDDEN = {"f16": -3e4}
"""Added to scores of tokens that are hidden, by type. Finite, because rows of padding see nothing else, and NaN would spread from
them."""
ANY_HIDDEN = -1e9
_TURNS = ((0, 2, 1), (0, 1, 3, 2))
"""Keys turned: heads flattened into the batch, or not."""


def fuse_attention(model: Any, *, masked: bool) -> int:
    """One operator for each attention, ``masked``: and an input for the mask; returns how many. Others stay as they are."""
    from openvino import opset13

    found = [parts for node in model.get_ordered_ops() if node.get_type_name() == "Softmax" for parts in _parts(node)]
    if not found:
        return 0
    kind = found[0][0].get_element_type()
    # Where the model has a mask, it adds it itself.
    hidden = _hidden(_input(model, MASK, "i64", 2), kind) if masked and not _has(model, MASK) else None
    masks: dict[Any, Any] = {}  # the blocks share theirs
    for queries, keys, values, added, factor, product in found:
        key = None if added is None else (added.get_node().get_friendly_name(), added.get_index())
        if key not in masks:
            masks[key] = hidden if added is None else added if hidden is None else opset13.add(added, hidden)
        # The operator's factor needs a mask before it.
        mask = masks[key] if masks[key] is not None else opset13.constant(np.zeros((1, 1, 1, 1)), dtype=kind)
        made = opset13.scaled_dot_product_attention(
            queries, keys, values, mask, opset13.constant(np.array(factor), dtype=kind), causal=False
        )
        product.output(0).replace(made.output(0))
    return len(found)


def free_positions(model: Any) -> bool:
    """Positions of rotary embeddings become an input; false where there are none, or not the same ones everywhere.

    (These embeddings tell differences of positions apart, and so padded texts come out right without that input, too.)
    """
    from openvino import opset13

    if _has(model, POSITIONS):
        return True
    angles = [node for node in model.get_ordered_ops() if node.get_type_name() in ("Sin", "Cos")]
    turned = {one.get_friendly_name(): one for node in angles for one in _counted(node)}
    sources = {(x.get_node().get_friendly_name(), x.get_index()): x for x in (one.input_value(0) for one in turned.values())}
    if len(sources) != 1:
        return False
    (source,) = sources.values()
    shape = source.get_partial_shape()
    free = [place for place, dim in enumerate(shape) if dim.is_dynamic]
    if len(free) != 1 or free[0] == 0 or any(dim.get_length() != 1 for dim in shape if dim.is_static):
        return False
    positions = _input(model, POSITIONS, "i64", 2)
    added = [place for place in range(1, len(shape)) if place != free[0]]
    given = opset13.unsqueeze(positions, opset13.constant(np.array(added))) if added else positions
    made = opset13.convert(given, source.get_element_type())
    for one in turned.values():
        one.input(0).replace_source_output(made.output(0))
    return True


def choose_beams(model: Any, past: Iterable[str]) -> None:
    """An input that says which text of the last step each text goes on from; ``past``: the inputs of the cache."""
    from openvino import opset13

    names = set(past)
    kept = [node for node in model.get_parameters() if names & node.output(0).get_names()]
    beams = _input(model, BEAMS, "i32", 1)
    for node in kept:
        readers = list(node.output(0).get_target_inputs())
        chosen = opset13.gather(node, beams, opset13.constant(np.int64(0)))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))


def begin_empty(model: Any) -> None:
    """States begin with no tokens for as many texts as come in."""
    from openvino import opset13

    texts = opset13.shape_of(model.inputs[0].get_node(), "i64")
    batch = opset13.gather(texts, opset13.constant(np.array([0])), opset13.constant(np.int64(0)))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [dim.get_length() if dim.is_static else 0 for dim in node.get_output_partial_shape(0)][1:]
            shape = opset13.concat([batch, opset13.constant(np.array(sizes, np.int64))], 0)
            nothing = opset13.constant(np.array(0), dtype=node.get_output_element_type(0))
            node.set_arguments([opset13.broadcast(nothing, shape)])
    model.validate_nodes_and_infer_types()


def _has(model: Any, name: str) -> bool:
    return any(name in item.get_names() for item in model.inputs)


def _hidden(mask: Any, kind: Any) -> Any:
    """What is added to scores (texts, 1, 1, tokens), from a mask (texts, tokens)."""
    from openvino import opset13

    amount = HIDDEN.get(kind.get_type_name(), ANY_HIDDEN)
    gone = opset13.subtract(opset13.constant(np.array(1), dtype=kind), opset13.convert(mask, kind))
    added = opset13.multiply(gone, opset13.constant(np.array(amount), dtype=kind))
    return opset13.unsqueeze(added, opset13.constant(np.array([1, 2])))


def _input(model: Any, name: str, kind: str, rank: int) -> Any:
    import openvino
    from openvino import opset13

    made = opset13.parameter(openvino.PartialShape([-1] * rank), getattr(openvino.Type, kind), name=name)
    made.output(0).get_tensor().set_names({name})
    model.add_parameters([made])
    return made


def _parts(softmax: Any) -> Iterator[tuple[Any, Any, Any, Any, float, Any]]:
    """Queries, keys, values, what is added to scores, their factor, and the node whose output is replaced."""
    scores, added = softmax.input_value(0), None
    if scores.get_node().get_type_name() == "Add":
        added, scores = scores.get_node().input_value(1), scores.get_node().input_value(0)
    product = scores.get_node()
    read = list(_after_nan(softmax).get_target_inputs())
    readers = [one.get_node() for one in read]
    if product.get_type_name() != "MatMul" or [one.get_type_name() for one in readers] != ["MatMul"] or read[0].get_index() != 0:
        return
    axis, last = softmax.get_attributes()["axis"], len(softmax.get_output_partial_shape(0)) - 1
    if axis not in (-1, last) or _turns(product)[0] or any(_turns(readers[0])):
        return
    (queries, of_queries), (keys, of_keys) = (_unscaled(product.input_value(place)) for place in (0, 1))
    turned = _untwisted(keys, product)
    if turned is not None and len(turned.get_partial_shape()) == 4:
        yield queries, turned, readers[0].input_value(1), added, of_queries * of_keys, readers[0]


def _turns(product: Any) -> tuple[bool, bool]:
    """Does a product turn its inputs?"""
    options = product.get_attributes()
    return bool(options["transpose_a"]), bool(options["transpose_b"])


def _after_nan(softmax: Any) -> Any:
    """The softmax, or what has replaced its NaN."""
    for one in softmax.output(0).get_target_inputs():
        if one.get_node().get_type_name() == "Select" and one.get_index() == 2:
            return one.get_node().output(0)
    return softmax.output(0)


def _unscaled(output: Any) -> tuple[Any, float]:
    """Without a constant factor, and that."""
    node = output.get_node()
    if node.get_type_name() == "Multiply":
        for place in (0, 1):
            factor = node.input_value(place).get_node()
            if factor.get_type_name() == "Constant" and np.asarray(factor.data).size == 1:
                return node.input_value(1 - place), float(np.asarray(factor.data).reshape(()))
    return output, 1.0


def _untwisted(keys: Any, product: Any) -> Any | None:
    """Keys before they were turned for the product; None: it can't be told."""
    if _turns(product)[1]:
        return keys
    node = keys.get_node()
    flat = node.get_type_name() == "Reshape"
    node = node.input_value(0).get_node() if flat else node
    if node.get_type_name() != "Transpose" or tuple(np.asarray(node.input_value(1).get_node().data)) != _TURNS[not flat]:
        return None
    source = node.input_value(0)
    if not flat:
        return source
    return source.get_node().input_value(0) if source.get_node().get_type_name() == "Reshape" else None


def _counted(node: Any) -> list[Any]:
    """The conversions of whole numbers from which an angle is made; none where a shape on the way may hold for one text alone."""
    found, todo, seen = [], [node], set[str]()
    while todo:
        one = todo.pop()
        for value in one.input_values():
            before = value.get_node()
            if before.get_friendly_name() in seen:
                continue
            seen.add(before.get_friendly_name())
            kind = before.get_type_name()
            if kind == "Convert" and before.input_value(0).get_element_type().is_integral():
                found.append(before)
            elif kind in ("Reshape", "Broadcast"):
                return []
            elif kind not in ("Constant", "Parameter", "ShapeOf"):
                todo.append(before)
    return found
