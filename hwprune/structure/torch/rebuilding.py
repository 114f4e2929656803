"""A captured module with another graph and other tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import fx, nn

from hwprune.structure.scope import Value


def copy_graph(module: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy without the recorded sizes (those of the dense model), and old node -> new node."""
    graph = fx.Graph()
    graph._codegen = module.graph._codegen  # how inputs and outputs are packed; never changes
    new: dict[fx.Node, fx.Node] = {}
    for old in module.graph.nodes:
        new[old] = graph.node_copy(old, lambda node: new[node])
        value = old.meta.get("val")
        new[old].meta = {"rank": value.ndim, "dtype": value.dtype} if isinstance(value, torch.Tensor) else {}
    return graph, new


def rebuild(
    dense: fx.GraphModule,
    graph: fx.Graph,
    parameters: Mapping[str, Value],
    change: Callable[[torch.Tensor, Value], torch.Tensor],
    dead: Collection[str] = (),
) -> fx.GraphModule:
    """A module with ``graph``, whose tensors are those of ``dense``, changed; the dense module is not touched.

    Args:
        parameters: tensors that carry axes, and their dims.
        change: makes the new tensor of one that carries axes.
        dead: tensors that are left out.
    """
    root = nn.Module()
    done: dict[int, torch.Tensor] = {}  # tied parameters stay tied
    kept_names = set(dense.state_dict())
    state = {
        **dict(dense.named_parameters(remove_duplicate=False)),
        **dict(dense.named_buffers(remove_duplicate=False)),
    }
    state = {name: tensor for name, tensor in state.items() if name not in dead}
    values = {id(state[name]): value for name, value in parameters.items() if name in state}
    for name, tensor in state.items():
        if id(tensor) not in done:
            value = values.get(id(tensor))
            new = change(tensor, value) if value is not None else tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            done[id(tensor)] = new
        assign(root, name, done[id(tensor)], persistent=name in kept_names)
    for node in graph.nodes:  # nested graphs of higher-order operators, and flags
        if node.op == "get_attr" and isinstance(part := getattr(dense, str(node.target), None), nn.Module):
            root.add_module(str(node.target), part)
    module = fx.GraphModule(root, graph, class_name=type(dense).__name__)
    for name in state:
        assign(module, name, done[id(state[name])], persistent=name in kept_names)
    module.meta |= {"free_batch": dense.meta.get("free_batch", True), "free_length": dense.meta.get("free_length", False)}
    module.train(dense.training)
    return module


def with_tensors(module: fx.GraphModule, source: fx.GraphModule) -> fx.GraphModule:
    """``module`` with the parameters and buffers of another of the same names, shared; tied ones stay tied."""
    kept_names = set(source.state_dict())
    tensors = {**dict(source.named_parameters(remove_duplicate=False)), **dict(source.named_buffers(remove_duplicate=False))}
    for name, tensor in tensors.items():
        assign(module, name, tensor, persistent=name in kept_names)
    return module


def assign(module: nn.Module, name: str, tensor: torch.Tensor, *, persistent: bool = True) -> None:
    """Set a parameter or buffer by its dotted name; missing containers are made."""
    *path, last = name.split(".")
    for part in path:
        child = module._modules.get(part)
        if child is None:
            child = nn.Module()
            module.add_module(part, child)
        module = child
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor, persistent=persistent)
