"""Linear and convolution layers where they stand in the graph: their inputs as columns, and where a constant could be added to
their outputs.

One file because all geometries of a layer (linear, convolution, transposed, embedding) share one way of reading columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx, nn

from hwprune.structure.model_graph import Matrix
from hwprune.structure.torch.analyse import WEIGHT_ARGUMENT
from hwprune.structure.torch.free_sizes import batch_symbols, symbols_of
from hwprune.structure.torch.opaque import opaque_model
from hwprune.structure.torch.rules.table import read_argument

_BATCH_NORM = torch.ops.aten.batch_norm.default
_ADDMM = torch.ops.aten.addmm.default


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with its geometry.

    Attributes:
        nodes: where the weight is used; more than once if it is shared.
        inputs: node that feeds each of ``nodes``.
        stride, padding, dilation: of a convolution, one number a spatial dim; padding as (before, after).
        bias: a parameter that is added to every output of this layer alone, or None.
        running_mean: of the batch norm that alone reads the outputs: subtracting from it is adding a bias; or None.
        argument: position of the input among the operator's arguments.
        batch_dim: dim of the input that holds the examples; None: it does not depend on them, or there is no telling.
    """

    matrix: Matrix
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    bias: str | None = None
    running_mean: str | None = None
    argument: int = 0
    batch_dim: int | None = 0

    @property
    def name(self) -> str:
        return self.matrix.parameter

    @property
    def movable(self) -> bool:
        """Can a constant be added to its outputs without changing the graph?"""
        return self.bias is not None or self.running_mean is not None

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Layers of equal geometry that read the same tensor see the same columns."""
        kernel = self.matrix.shape[2:]
        per_group = self.matrix.shape[1]
        return (self.matrix.kind == "conv", kernel, per_group, self.matrix.groups, self.stride, self.padding, self.dilation)

    def patches(self, x: torch.Tensor) -> torch.Tensor:
        """A view of the layer's input: (batch, positions..., G, in / G, kernel...); positions are those of the outputs."""
        if self.matrix.kind != "conv":
            return self._examples(x)[:, :, None]
        spatial = len(self.stride)
        if x.ndim == spatial + 1:
            x = x[None]
        pads = [number for pair in reversed(self.padding) for number in pair]
        x = nn.functional.pad(x, pads) if any(pads) else x.contiguous()
        b, c = x.shape[:2]
        kernel = self.matrix.shape[2:]
        reach = [dilation * (k - 1) for dilation, k in zip(self.dilation, kernel, strict=True)]
        out = [(size - r - 1) // stride + 1 for size, r, stride in zip(x.shape[2:], reach, self.stride, strict=True)]
        steps = x.stride()
        g = self.matrix.groups
        return x.as_strided(
            (b, *out, g, c // g, *kernel),
            (
                steps[0],
                *(step * stride for step, stride in zip(steps[2:], self.stride, strict=True)),
                steps[1] * (c // g),
                steps[1],
                *(step * dilation for step, dilation in zip(steps[2:], self.dilation, strict=True)),
            ),
        )

    def columns(
        self,
        x: torch.Tensor,
        limit: int | None = None,
        generator: torch.Generator | None = None,
        allowed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Input columns (G, rows, d), numbered as ``weight.flatten(1)``.

        Args:
            limit: so many positions are drawn at random if there are more.
            allowed: bool, (batch, positions...) as `patches` has them: those to draw from.
        """
        patches = self.patches(x)
        places = patches.ndim - 2 - len(self.matrix.shape[2:])
        sizes = patches.shape[:places]
        total = prod(sizes)
        if allowed is not None:
            choices = allowed.reshape(-1).nonzero().squeeze(1)
            if limit is not None and limit < len(choices):
                choices = choices[torch.randint(len(choices), (limit,), generator=generator)]
            patches = _gather(patches, places, choices.to(x.device))
        elif limit is not None and limit < total:
            patches = _gather(patches, places, torch.randint(total, (limit,), generator=generator).to(x.device))
        return patches.reshape(-1, self.matrix.groups, self._inner).transpose(0, 1)

    def columns_at(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Input columns (G, rows, d) at positions that are numbered as `patches` has them."""
        patches = self.patches(x)
        patches = _gather(patches, patches.ndim - 2 - len(self.matrix.shape[2:]), places.to(x.device))
        return patches.reshape(-1, self.matrix.groups, self._inner).transpose(0, 1)

    def by_example(self, x: torch.Tensor) -> torch.Tensor:
        """Input columns (batch, G, positions, d)."""
        patches = self.patches(x)
        return patches.reshape(len(patches), -1, self.matrix.groups, self._inner).transpose(1, 2)

    def outputs_by_example(self, y: torch.Tensor) -> torch.Tensor:
        """Outputs, or gradients of them, as (batch, G, positions, out / G)."""
        g = self.matrix.groups
        if self.matrix.kind != "conv":
            return self._examples(y)[:, None]
        y = y if y.ndim == len(self.stride) + 2 else y[None]
        return y.reshape(len(y), g, y.shape[1] // g, -1).transpose(2, 3)

    @property
    def _inner(self) -> int:
        return prod(self.matrix.shape[1:])

    def _examples(self, x: torch.Tensor) -> torch.Tensor:
        """A linear layer's input or output as (batch, positions, features)."""
        if x.ndim < 2:
            return x[None, None]
        if self.batch_dim is None:
            return x.reshape(1, -1, x.shape[-1])
        x = x.movedim(self.batch_dim, 0)
        return x.reshape(len(x), -1, x.shape[-1])

    def matters(self, gradient: torch.Tensor) -> torch.Tensor:
        """(batch, positions...) bool: where a gradient of the layer's outputs is not zero."""
        if self.matrix.kind != "conv":
            return (self._examples(gradient) != 0).any(dim=2)
        gradient = gradient if gradient.ndim == len(self.stride) + 2 else gradient[None]
        return (gradient != 0).any(dim=1)

    def sampled_channels(self, x: torch.Tensor, limit: int, generator: torch.Generator) -> torch.Tensor:
        """Inputs at random positions (rows, in); all of them if there are no more than ``limit``."""
        channel = x.ndim - 1 - len(self.stride) if self.matrix.kind == "conv" else x.ndim - 1
        outer, inner = x.shape[:channel], x.shape[channel + 1 :]
        flat = x.reshape(prod(outer), x.shape[channel], prod(inner))
        total = flat.shape[0] * flat.shape[2]
        if total <= limit:
            return flat.movedim(1, -1).reshape(total, -1)
        drawn = torch.randint(total, (limit,), generator=generator).to(x.device)
        return flat[drawn // flat.shape[2], :, drawn % flat.shape[2]]


def _gather(view: torch.Tensor, places: int, drawn: torch.Tensor) -> torch.Tensor:
    """``view[drawn]`` over its first ``places`` dims, flattened; by numbers of elements, which is twice as fast for
    overlapping patches.
    """
    steps = view.stride()
    offsets = torch.zeros(1, dtype=torch.int64, device=view.device)
    for size, step in zip(view.shape[places:], steps[places:], strict=True):
        offsets = (offsets[:, None] + torch.arange(size, device=view.device) * step).reshape(-1)
    base = torch.stack(
        [index * step for index, step in zip(torch.unravel_index(drawn, view.shape[:places]), steps[:places], strict=True)]
    ).sum(dim=0)
    reach = 1 + sum((size - 1) * step for size, step in zip(view.shape, steps, strict=True))
    flat = view.as_strided((reach,), (1,))
    return torch.take(flat, base[:, None] + offsets).reshape(len(drawn), *view.shape[places:])


def find(module: fx.GraphModule, matrices: Iterable[Matrix]) -> dict[str, Layer]:
    """Every matrix of the graph as a layer, by its parameter; a matrix whose weight is used in a way of its own is left out."""
    wanted = {matrix.parameter: matrix for matrix in matrices}
    if (model := opaque_model(module)) is not None:
        return _of_modules(model, wanted)
    uses: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in WEIGHT_ARGUMENT:
            source = node.args[WEIGHT_ARGUMENT[node.target][1]]
            if isinstance(source, fx.Node) and source.op == "get_attr" and str(source.target) in wanted:
                uses.setdefault(str(source.target), []).append(node)
    readers: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    layers = {}
    for name, nodes in uses.items():
        if readers[name] == len(nodes):  # tied to something that is no layer (an embedding): its weights may not change
            layer = _layer(wanted[name], nodes, readers, module)
            if layer is not None:
                layers[name] = layer
    return {name: layers[name] for name in wanted if name in layers}


def _layer(matrix: Matrix, nodes: list[fx.Node], readers: Mapping[str, int], module: fx.GraphModule) -> Layer | None:
    argument = 1 if nodes[0].target is _ADDMM else 0
    inputs = [node.args[argument] for node in nodes]
    if not all(isinstance(source, fx.Node) for source in inputs):
        return None
    names, feeds = tuple(node.name for node in nodes), tuple(str(source) for source in inputs)
    geometries = {_geometry(node, matrix) for node in nodes} if matrix.kind == "conv" else {((), (), ())}
    if len(geometries) != 1:
        return None
    stride, padding, dilation = geometries.pop()
    bias = _own_bias(nodes[0], matrix, readers, module) if len(nodes) == 1 else None
    mean = _running_mean(nodes[0], matrix, readers) if len(nodes) == 1 and bias is None else None
    return Layer(matrix, names, feeds, stride, padding, dilation, bias, mean, argument, _batch_dim(inputs[0], matrix, module))


def _batch_dim(source: Any, matrix: Matrix, module: fx.GraphModule) -> int | None:
    """The dim whose size grows with the batch, or that is as long as it; None if there is not just one.

    Attention layers of PyTorch put the sequence first; the number of tokens may be known at run time only, too.
    """
    value = source.meta.get("val")
    if matrix.kind == "conv" or not isinstance(value, torch.Tensor):
        return 0
    if module.meta.get("free_batch", True):
        batches = batch_symbols(module)
        dims = [dim for dim, size in enumerate(value.shape[:-1]) if symbols_of(size) & batches]
    else:
        first = next(node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder")
        dims = [dim for dim, size in enumerate(value.shape[:-1]) if size == first.shape[0]]
    return dims[0] if len(dims) == 1 else None


def _geometry(node: fx.Node, matrix: Matrix) -> Any:
    spatial = len(matrix.shape) - 2
    stride, dilation = (_numbers(read_argument(node, name), spatial) for name in ("stride", "dilation"))
    padding = read_argument(node, "padding")
    if isinstance(padding, str):
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, matrix.shape[2:], strict=True)]
        return stride, tuple((r // 2, r - r // 2) for r in reach), dilation
    return stride, tuple((p, p) for p in _numbers(padding, spatial)), dilation


def _numbers(value: Any, spatial: int) -> tuple[int, ...]:
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple(numbers * spatial if len(numbers) == 1 else numbers)


def _own_bias(node: fx.Node, matrix: Matrix, readers: Mapping[str, int], module: fx.GraphModule) -> str | None:
    position = 0 if node.target is _ADDMM else 2
    if node.target not in (_ADDMM, torch.ops.aten.linear.default) and matrix.kind != "conv":
        return None
    source = node.args[position] if len(node.args) > position else None
    if not isinstance(source, fx.Node) or source.op != "get_attr" or readers[str(source.target)] != 1:
        return None
    if node.target is _ADDMM and (node.kwargs or len(node.args) > 3):
        return None  # scaled
    value: Any = module
    for part in str(source.target).split("."):
        value = getattr(value, part)
    return str(source.target) if tuple(value.shape) == (matrix.shape[0],) else None


def _running_mean(node: fx.Node, matrix: Matrix, readers: Mapping[str, int]) -> str | None:
    users = list(node.users)
    value = node.meta.get("val")
    rank = value.ndim if isinstance(value, torch.Tensor) else node.meta.get("rank")
    if rank != (2 if matrix.kind != "conv" else len(matrix.shape)):
        return None  # batch norm counts along dim 1, which is not the layer's outputs here
    if len(users) != 1 or users[0].target is not _BATCH_NORM or users[0].args[0] is not node:
        return None
    mean = users[0].args[3]
    if not isinstance(mean, fx.Node) or mean.op != "get_attr" or readers[str(mean.target)] != 1:
        return None
    return str(mean.target)


def _of_modules(model: nn.Module, wanted: Mapping[str, Matrix]) -> dict[str, Layer]:
    """Layers of a model that can't be traced; the module's name stands for the node."""
    homes: dict[int, list[str]] = {}
    biases: dict[int, int] = {}
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, _LAYERS):
            homes.setdefault(id(layer.weight), []).append(path)
            biases[id(layer.bias)] = biases.get(id(layer.bias), 0) + 1
    layers = {}
    for path, layer in model.named_modules():
        name = f"{path}.weight"
        if name not in wanted or not isinstance(layer, _LAYERS):
            continue
        paths = tuple(homes[id(layer.weight)])
        own_bias = layer.bias is not None and len(paths) == 1 and biases[id(layer.bias)] == 1
        feeds = ("",) * len(paths)
        if isinstance(layer, nn.Linear):
            layers[name] = Layer(wanted[name], paths, feeds, bias=f"{path}.bias" if own_bias else None)
        elif layer.padding_mode == "zeros":
            padding: Any = layer.padding
            if isinstance(padding, str):
                reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
                pairs = tuple((r // 2, r - r // 2) for r in reach)
            else:
                pairs = tuple((p, p) for p in padding)
            bias = f"{path}.bias" if own_bias else None
            layers[name] = Layer(wanted[name], paths, feeds, tuple(layer.stride), pairs, tuple(layer.dilation), bias)
    return layers


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


Visit = Callable[[str, tuple[Any, ...], Any], Any]
"""(node or module name, its arguments, its result) -> what to go on with instead of the result, or None"""


class _Visiting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: Iterable[str], visit: Visit) -> None:
        super().__init__(module)
        self.names = set(names)
        self.visit = visit

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.names:
            return super().run_node(n)
        arguments, _ = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        instead = self.visit(n.name, arguments, result)
        return result if instead is None else instead


def run(module: fx.GraphModule, inputs: tuple[torch.Tensor, ...], names: Iterable[str], visit: Visit) -> Any:
    """Run the model; ``visit`` sees the named nodes (modules, if it can't be traced) as they are computed."""
    model = opaque_model(module)
    if model is None:
        return _Visiting(module, names, visit).run(*inputs)

    def hook(path: str) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda _layer, arguments, result: visit(path, arguments, result)

    wanted = set(names)
    handles = [layer.register_forward_hook(hook(path)) for path, layer in model.named_modules() if path in wanted]
    try:
        return model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
