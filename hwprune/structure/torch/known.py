"""Operators without a rule, written in operators that have one: ``hstack`` as ``cat``, ``rot90`` as ``flip``.

Each is rewritten where it stands: PyTorch's own ``run_decompositions`` rewrites whole graphs, and batch norms that follow
``train()`` with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from hwprune.structure.torch.rules import RULES
from hwprune.structure.torch.unstacking import projects

ROUNDS = 4
"""How often what comes of rewriting an operator is rewritten itself."""
_READS_SIZES = (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default)


def rewrite_unknown(module: fx.GraphModule) -> None:
    """Rewrite in place whatever has no rule and that PyTorch can write in other operators; the rest stays."""
    for _ in range(ROUNDS):
        rewritten = [_rewrite(module, node) for node in list(module.graph.nodes) if _is_unknown(node)]
        if not any(rewritten):
            return


def _is_unknown(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or node.target in _READS_SIZES:
        return False
    return (node.target not in RULES and node.target._schema.name not in RULES) or projects(node)


def _rewrite(module: fx.GraphModule, node: fx.Node) -> bool:
    """Put the operators that the node consists of in its place; False where there are none."""
    flat, spec = tree_flatten((node.args, dict(node.kwargs)))
    sources = list(dict.fromkeys(a for a in flat if isinstance(a, fx.Node)))
    if not all("val" in source.meta for source in sources) or getattr(node.target, "_schema").is_mutable:  # noqa: B009 - of a union
        return False

    def run(*values: Any) -> Any:
        given = dict(zip(sources, values, strict=True))
        args, kwargs = tree_unflatten([given[a] if isinstance(a, fx.Node) else a for a in flat], spec)
        return node.target(*args, **kwargs)  # type: ignore[operator]  # an operator

    try:
        table: Any = torch._decomp.get_decompositions([node.target])  # type: ignore[list-item]
        traced = make_fx(run, decomposition_table=table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
            *[source.meta["val"] for source in sources]
        )
    except Exception:  # PyTorch raises whatever its own rewriting raises; then the operator stays
        return False
    if any(inner.target is node.target for inner in traced.graph.nodes):
        return False
    _paste(module, node, traced, sources)
    return True


def _paste(module: fx.GraphModule, node: fx.Node, traced: fx.GraphModule, sources: list[fx.Node]) -> None:
    graph = module.graph
    feed = iter(sources)
    new: dict[fx.Node, Any] = {}
    result: Any = None
    with graph.inserting_before(node):
        for old in traced.graph.nodes:
            if old.op == "placeholder":
                new[old] = next(feed)
            elif old.op == "output":
                result = fx.map_arg(old.args[0], lambda inner: new[inner])
            elif old.op == "get_attr":
                name = f"_constant_{sum(1 for _ in module.buffers())}"
                module.register_buffer(name, getattr(traced, str(old.target)).detach(), persistent=False)
                new[old] = graph.get_attr(name)
                new[old].meta = dict(old.meta)
            else:
                new[old] = graph.node_copy(old, lambda inner: new[inner])
    if isinstance(result, (list, tuple)):
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]  # a getitem's index is an int
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(result)
    graph.erase_node(node)
