"""Capturing a PyTorch model with torch.export."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import transformer

from hwprune.errors import TraceError
from hwprune.structure.torch.free_sizes import free_batch, has_free_batch, has_free_length, has_tokens
from hwprune.structure.torch.known import rewrite_unknown
from hwprune.structure.torch.model_forms import advice, quantisation_aware, settled
from hwprune.structure.torch.rebuilding import assign
from hwprune.structure.torch.unstacking import STATES, unstack

_GLOBAL_POOLS = (
    torch.ops.aten.adaptive_avg_pool1d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool3d.default,
)
_TRAINING_FLAG: dict[Any, int] = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.dropout_.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.feature_dropout_.default: 2,
    **dict.fromkeys(STATES, 6),
}
"""Position of the flag that ``train()`` and ``eval()`` switch."""


def capture(model: nn.Module, example_inputs: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The ATen graph of ``model`` as a module with the model's own tensors; arguments and errors as for `trace`."""
    model, example_inputs = settled(model, example_inputs)
    inputs = tuple(example_inputs)
    if (reason := quantisation_aware(model)) is not None:
        raise TraceError(reason)
    was_training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        module = _any_batch(model, inputs)
    except Exception as error:  # torch.export raises whatever the model's own code raises
        usual = (
            "Structural pruning needs a forward without Python branches on tensor values, and example_inputs that it accepts "
            "(first dimension = batch)."
        )
        raise TraceError(
            f"torch.export can't trace {type(model).__name__}: {_plain_words(error)}. {advice(model, inputs, error) or usual}"
        ) from error
    finally:
        for name, part in model.named_modules():
            part.training = was_training[name]
    free = {"free_batch": has_free_batch(module), "free_length": has_free_length(module)}
    traced = _own(module, model)
    traced.meta |= {**free, "length": next((x.shape[1] for x in inputs if free["free_length"] and x.ndim == 2), None)}
    return traced


def _plain_words(error: Exception) -> str:
    """The complaint of torch.export, as people would say it."""
    kind, text = type(error).__name__, str(error).strip()
    first = text.splitlines()[0] if text else ""
    if "DataDependent" in kind or "data-dependent" in text:
        match = re.search(r"File: (.+?):(\d+) in \w+, code: (.+)", text) or re.search(
            r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', text
        )
        place = f" (line {match[2]} of {match[1].rpartition('/')[2]}: {match[3].strip()})" if match else ""
        return f"its forward takes a Python branch, or makes a size, from the values of a tensor{place}"
    return f"{kind}: {first}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence torch.export, which prints and logs whole graphs when it gives up; the reason is in its exception."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _any_batch(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """The model captured with a free batch, or at the given one if the model fixes it (len(x), a baked-in size).

    Where tokens come in, their number is free too, if the model leaves it so.
    """
    if has_tokens(inputs):
        with contextlib.suppress(Exception):  # the model's own code may want one length: then it gets that one
            module = _exported(model, *free_batch(model, inputs, length=True))
            if has_free_batch(module) and has_free_length(module):
                return module
    try:
        module = _exported(model, *free_batch(model, inputs))
    except Exception as error:  # torch.export raises whatever the model's own code raises
        try:
            return _exported(model, inputs, None)
        except Exception:
            raise error from None  # the first is about what the model's code does, not about the batch
    return module if has_free_batch(module) else _exported(model, inputs, None)


def _exported(model: nn.Module, inputs: tuple[torch.Tensor, ...], shapes: Any) -> fx.GraphModule:
    with _silent(), _masks_as_they_are():
        program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
        if any(getattr(node.target, "__module__", "") == "torch._functorch.predispatch" for node in program.graph.nodes):
            program = program.run_decompositions({})  # a vmap is recorded as it begins and ends, on tensors of a rank of its own
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def _told(mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: ARG001, FBT001
    return bool(is_causal)


@contextlib.contextmanager
def _masks_as_they_are() -> Iterator[None]:
    """Keep ``nn.Transformer`` from comparing its mask's values with those of a causal one: that is a hint, the mask is used."""
    held = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _told
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = held


def _own(exported: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """A plain GraphModule with the model's state under its own names that obeys train() and eval()."""
    graph = exported.graph
    _inline(exported)
    with _silent():
        rewrite_unknown(exported)
    _out_of_place(graph)
    unstack(graph)
    for node in list(graph.nodes):
        if (node.op == "call_module" and not node.users) or node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.view.default:
            # Strides may differ after a cut (another attention kernel): reshape copies where view would fail.
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.view_as_complex.default:  # it asks for even strides, which a cut need not leave
            with graph.inserting_before(node):
                whole = graph.call_function(torch.ops.aten.contiguous.default, (node.args[0],))
            whole.meta = dict(node.args[0].meta)
            node.update_arg(0, whole)
        elif node.target is torch.ops.aten.squeeze.default:
            # An axis that is cut to a single index, or a batch of one, must not vanish.
            shape = node.args[0].meta["val"].shape
            node.target = torch.ops.aten.squeeze.dims
            node.args = (node.args[0], [position for position, size in enumerate(shape) if isinstance(size, int) and size == 1])
        elif node.target in _GLOBAL_POOLS and all(size == 1 for size in node.args[1]):
            # The same value, and ONNX exporters write the pooling with a table of strides.
            node.target = torch.ops.aten.mean.dim
            node.args = (node.args[0], list(range(-len(node.args[1]), 0)), True)
    graph.eliminate_dead_code()  # what nothing reads must not constrain an axis
    # Only what was off in eval follows train(): dropout that is always on, or statistics never tracked, stay so.
    flags = [n for n in graph.nodes if n.target in _TRAINING_FLAG and n.args[_TRAINING_FLAG[n.target]] is False]
    if flags:
        with graph.inserting_before(next(iter(graph.nodes))), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fx expects a parameter or a module behind get_attr; a flag works too
            training = graph.get_attr("training")
        for node in flags:
            args = list(node.args)
            args[_TRAINING_FLAG[node.target]] = training
            node.args = tuple(args)
    module = fx.GraphModule(exported, graph, class_name=type(model).__name__)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and lookup(module, name) is None:
            assign(module, name, tensor)
    persistent = set(model.state_dict())
    for name, tensor in list(module.named_buffers()):
        if name not in persistent:
            assign(module, name, tensor, persistent=False)
    module.eval()
    return module


_SPLITS = frozenset(
    (
        torch.ops.aten.split.Tensor, torch.ops.aten.split_with_sizes.default, torch.ops.aten.chunk.default,
        torch.ops.aten.unsafe_chunk.default, torch.ops.aten.unbind.int,
    )
)  # fmt: skip


def _out_of_place(graph: fx.Graph) -> None:
    """Write into no part of a split tensor, as LSTM cells do with their gates: autograd forbids it."""
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not (isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name.endswith("_")):
            continue
        origin = source.args[0] if isinstance(source, fx.Node) and source.target is operator.getitem else None
        whole = origin.args[0] if isinstance(origin, fx.Node) and origin.target in _SPLITS else None
        packet = getattr(torch.ops.aten, node.target._schema.name.removeprefix("aten::").removesuffix("_"), None)
        function = getattr(packet, node.target._overloadname, None)
        if isinstance(whole, fx.Node) and len(whole.users) == 1 and function is not None:  # nobody reads the whole
            assert isinstance(source, fx.Node)
            node.target = function
            earlier = True
            for other in graph.nodes:
                earlier = earlier and other is not node
                if not earlier and other is not node:
                    other.replace_input_with(source, node)


def _inline(module: fx.GraphModule) -> None:
    """Replace the nested graphs that ``torch.no_grad()`` and switched-off autocast leave by their nodes."""
    graph = module.graph
    changed = True
    while changed:  # a nested graph may hold another
        changed = False
        for node in list(graph.nodes):
            if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
                detach, inner = not node.args[0], node.args[1]
            elif node.target is torch.ops.higher_order.wrap_with_autocast and not node.args[2]:
                detach, inner = False, node.args[4]
            else:
                continue
            arguments = node.args[node.args.index(inner) + 1 :]
            _paste(graph, node, lookup(module, str(inner.target)), arguments, detach=detach)
            changed = True
    graph.eliminate_dead_code()


def _paste(graph: fx.Graph, node: fx.Node, nested: fx.GraphModule, arguments: Sequence[Any], *, detach: bool) -> None:
    """The nodes of ``nested`` before ``node``, and ``node`` gone; detached outputs stand for no_grad."""
    feed = iter(arguments)
    new: dict[fx.Node, Any] = {}
    results: Sequence[Any] = ()
    with graph.inserting_before(node):
        for old in nested.graph.nodes:
            if old.op == "placeholder":
                new[old] = next(feed)
            elif old.op == "output":
                results = [new[value] if isinstance(value, fx.Node) else value for value in old.args[0]]
            else:
                new[old] = graph.node_copy(old, lambda argument: new[argument])
        if detach:
            results = [_detached(graph, value) for value in results]
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]  # a getitem's index is an int
        graph.erase_node(user)
    graph.erase_node(node)


def _detached(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    node = graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node


def lookup(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
