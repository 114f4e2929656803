"""What of a model's operators is unusual: functions of the model's own, and versions that hwprune's files don't have.

Names alone don't say what an operator does: a local function does what its body says, a standard operator what its opset says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx

USUAL_OPSETS = {"": 20, "com.microsoft": 1}
"""Versions that files of hwprune have (`hwprune.onnx_files.to_onnx.OPSET`); of other domains it is 1."""
_FunctionKey = tuple[str, str, str]
"""Domain, name and overload."""


def unusual(
    nodes: Sequence[onnx.NodeProto], functions: Iterable[onnx.FunctionProto], opsets: Iterable[tuple[str, int]]
) -> Iterator[bytes]:
    """What nodes of these types do beyond what their names and attributes say; nothing for usual operators."""
    called = _called(nodes, functions)
    versions = {_domain(domain): version for domain, version in opsets}
    yield from sorted({_version(node, versions) for node in _with_inner(nodes) if _key(node) not in called} - {b""})
    for function in called.values():
        yield _body(function)


def _version(node: onnx.NodeProto, versions: dict[str, int]) -> bytes:
    """The operator with the opset that it got its meaning in, where the usual opset gives it another; else empty."""
    domain = _domain(node.domain)
    usual = USUAL_OPSETS.get(domain, 1)
    since = _since(node.op_type, domain, versions.get(domain, usual))
    return b"" if since == _since(node.op_type, domain, usual) else f";{domain} {node.op_type} {since}".encode()


def _since(operator: str, domain: str, version: int) -> int:
    """The opset that gave the operator the meaning that it has in ``version``; that itself where ONNX doesn't know."""
    try:
        return int(onnx.defs.get_schema(operator, version, domain).since_version)
    except onnx.defs.SchemaError:
        return version


def _called(nodes: Iterable[onnx.NodeProto], functions: Iterable[onnx.FunctionProto]) -> dict[_FunctionKey, onnx.FunctionProto]:
    """The functions that nodes call, and those that these call, in the order of their first call."""
    stored = {(_domain(item.domain), item.name, item.overload): item for item in functions}
    called: dict[_FunctionKey, onnx.FunctionProto] = {}
    waiting = list(nodes) if stored else []
    while waiting:
        callers, waiting = waiting, []
        for key in map(_key, _with_inner(callers)):
            if key in stored and key not in called:
                called[key] = stored[key]
                waiting.extend(stored[key].node)
    return called


def _body(function: onnx.FunctionProto) -> bytes:
    """The function without documentation and metadata, which hold paths of the machine that wrote it."""
    body = onnx.FunctionProto()
    body.CopyFrom(function)
    body.opset_import.sort(key=lambda item: item.domain)
    parts: tuple[Any, ...] = (body, *_with_inner(body.node))
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    text: bytes = body.SerializeToString(deterministic=True)
    return text


def _with_inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes with those of their inner graphs, in order."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _with_inner(graph.node)


def _key(node: onnx.NodeProto) -> _FunctionKey:
    return _domain(node.domain), node.op_type, node.overload


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
