"""Tensors keep their names in an exported file, though the exporter calls results of operators ``mean`` or ``linear``.

A buffer called ``mean`` and a result called ``mean`` in one graph make a file that nothing loads. So tensors are set apart under
a name with a dot, which no result has, while the exporter works; then they get their names back, and results that stand in the
way get others.
"""

from __future__ import annotations

import onnx
from torch import fx, nn

APART = "hwprune_own"


def set_apart(module: nn.Module) -> nn.Module:
    """The module with all its tensors one level deeper, if any lies at the top; else as it is."""
    if not isinstance(module, fx.GraphModule):
        return module
    targets = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    if all("." in target for target in targets):
        return module
    root = nn.Module()
    root.add_module(APART, module)
    graph = fx.Graph()
    graph._codegen = module.graph._codegen
    copied: dict[fx.Node, fx.Node] = {}
    for old in module.graph.nodes:
        copied[old] = graph.node_copy(old, lambda node: copied[node])
        if old.op in ("get_attr", "call_module"):
            copied[old].target = f"{APART}.{old.target}"
    return fx.GraphModule(root, graph).eval()


def restored(model: onnx.ModelProto) -> onnx.ModelProto:
    """The exported file with the tensors' own names."""
    prefix = f"{APART}."
    own = {t.name: t.name.removeprefix(prefix) for t in model.graph.initializer if t.name.startswith(prefix)}
    if not own:
        return model
    interface = {item.name for item in (*model.graph.input, *model.graph.output)}
    results = {name for graph in graphs(model.graph) for node in graph.node for name in node.output}
    names = interface | results | {t.name for t in model.graph.initializer} | set(own.values())
    renamed = dict(own)
    for name in sorted(set(own.values()) & (results | interface)):
        other = next(free for number in range(1, len(names) + 2) if (free := f"{name}_{number}") not in names)
        names.add(other)
        renamed[name] = other
    for graph in graphs(model.graph):
        rename(graph, renamed)
    return model


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give tensors of a graph other names, wherever they stand in it; graphs inside its nodes are left."""
    for node in graph.node:
        for listed in (node.input, node.output):
            listed[:] = [names.get(name, name) for name in listed]
    for item in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.name = names.get(item.name, item.name)


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += graphs(inner)
    return found
