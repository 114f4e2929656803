"""Calibration: what the data tells about every layer, in one pass forward and, if gradients are wanted, one with gradients.

Everything is streamed: of a batch only random positions are kept, as columns for the Gram matrices, and added up at once. Gram
matrices that do not fit into the memory limit together are collected in several passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import fx

from hwprune.errors import UsageError, WorkloadError
from hwprune.metrics import class_axis
from hwprune.statistics import LayerStatistics
from hwprune.structure import layers as layer_table
from hwprune.structure.graph import ModelGraph
from hwprune.structure.layers import Layer
from hwprune.workload import Inputs, Workload, first_tensor

MIN_ROWS = 8192
"""Positions that every layer's statistics see, if the data has as many."""
ROWS_PER_COLUMN = 12
"""Positions for each column of a Gram matrix: with n of them its noise is about sqrt(d / n) (methods 8.1.7 asks for 10)."""
MEMORY_LIMIT = 2_000_000_000
"""Bytes of Gram matrices held at once."""
FORWARD_EXAMPLES = 256
GRADIENT_EXAMPLES = 32
"""Examples run at once; a gradient pass holds the inputs of every layer."""
TEMPERATURE = 3.0
"""Of the logits whose divergence is predicted (see `backward`). A network knows its calibration data better than the data that
decide, so the Fisher information of its sharp distribution there says little: over 43 random recipes of ResNet-20 the rank
correlation of predicted and true KL is 0.942 at temperature 1, 0.984 at 2, 0.989 at 3 and 0.990 at 4 (`benchmarks/engine.py
--only prior --recipes 70`); on a network that is less sure it is 0.990 at all four."""
TEMPORARY_BYTES = 128_000_000

GRAM = frozenset(
    {"gram", "covariance", "mean", "input_square", "channel_mean", "channel_variance", "channel_abs", "channel_zero"}
)
GRADIENT = frozenset({"grad_abs", "fisher", "taylor_in", "taylor_out"})
INFLUENCE = "influence"
"""Of branches: 1 - cosine between what goes into the sum on the skip side and what comes out (ShortGPT: Men et al. 2024)."""

Progress = Callable[[int, int], None]
"""(examples seen, examples in all)"""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Statistics of every layer by its weight's name, and the influence of every branch by its name."""

    layers: Mapping[str, LayerStatistics]
    influence: Mapping[str, float] = field(default_factory=dict)
    examples: int = 0

    def merged(self, other: Calibration) -> Calibration:
        """Both; what ``other`` has wins."""
        names = dict.fromkeys([*self.layers, *other.layers])
        empty = LayerStatistics()
        both = {}
        for name in names:
            old, new = self.layers.get(name, empty), other.layers.get(name, empty)
            known = {f.name: getattr(new, f.name) for f in dataclasses.fields(new) if getattr(new, f.name) is not None}
            if new.covariance is None:
                known.pop("rows")
            both[name] = dataclasses.replace(old, **known)
        return Calibration(both, {**self.influence, **other.influence}, max(self.examples, other.examples))


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """One batch's gradients.

    Attributes:
        layers: weight's name -> for each use its input columns (n, G, positions, d) and output gradients (n, G, positions,
            out / G).
        sums: sum's name -> the value of one operand, and the gradient of the sum.
    """

    examples: int
    layers: Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]
    sums: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def backward(graph: ModelGraph, workload: Workload, branches: Mapping[str, int], limit: int, seed: int = 0) -> Iterator[Backward]:
    """Gradients of a random scalar z of each example's outputs whose mean square along a change is its Fisher information.

    Of logits at temperature `TEMPERATURE`, z = T sum_c sqrt(p_c) s_c log p_c with random signs s: a drawn label has the same
    mean square, but is dominated by rare events where the model is sure, as it is on its training data. An output that is no
    distribution counts as the mean of a Gaussian of unit variance.

    Raises:
        WorkloadError: the data can't be used.
        UsageError: the model's output has no gradient.
    """
    return _Run(graph, workload, seed, targets=False, progress=None, softened=True).backward(branches, limit)


def collect_statistics(
    graph: ModelGraph,
    workload: Workload,
    names: Iterable[str] = GRAM,
    *,
    memory: int = MEMORY_LIMIT,
    seed: int = 0,
    labels: str = "auto",
    progress: Progress | None = None,
) -> Calibration:
    """Collect statistics of the dense model on the calibration data.

    Args:
        names: fields of `LayerStatistics`, or ``influence``. Fields of one kind (inputs, gradients) come together.
        labels: whose labels the loss takes. ``data``: the targets. ``model``: drawn from the model's own distribution, which
            gives the Fisher information; ``auto``: that for classifiers with the default loss, the targets for everything
            else. A model that knows its calibration data by heart has no gradient left at their targets (ResNet-20 on its
            training images: cross-entropy 0.006; Taylor channels at 50 % keep 49.2 % accuracy with targets, 58.7 % with drawn
            labels).
        memory: bytes of Gram matrices to hold at once; more take several passes over the data.

    Raises:
        WorkloadError: the data can't be used, or a layer sees NaN or infinity.
        UsageError: gradients are asked for, and no layer gets any.
    """
    wanted = set(names)
    if labels not in ("auto", "data", "model"):
        raise UsageError(f"labels must be auto, data or model, got {labels!r}")
    if labels == "auto":
        classifies = workload.scoring.name in ("top1", "top5", "agreement")
        labels = "model" if classifies and workload.loss is torch.nn.functional.cross_entropy else "data"
    run = _Run(graph, workload, seed, labels == "data", progress)
    result = Calibration({})
    if wanted & GRAM or INFLUENCE in wanted:
        groups = _fit(run.layers, memory) if wanted & GRAM else [[]]
        for number, group in enumerate(groups):
            result = result.merged(run.forward(group, INFLUENCE in wanted and number == 0))
    if wanted & GRADIENT:
        result = result.merged(run.gradients())
    return result


def _fit(layers: Mapping[str, Layer], memory: int) -> list[list[Layer]]:
    """Groups of layers whose Gram matrices fit together; those that share one stay together."""
    shared: dict[Any, list[Layer]] = {}
    for layer in layers.values():
        shared.setdefault((layer.inputs, layer.geometry) if layer.inputs[0] else layer.name, []).append(layer)
    groups: list[list[Layer]] = [[]]
    held = 0
    for same in shared.values():
        need = 4 * same[0].matrix.groups * (_columns(same[0]) + 1) ** 2
        if groups[-1] and held + need > memory:
            groups.append([])
            held = 0
        groups[-1].extend(same)
        held += need
    return groups


def _columns(layer: Layer) -> int:
    columns = 1
    for size in layer.matrix.shape[1:]:
        columns *= size
    return columns


class _Sums:
    """Running sums of one Gram matrix and of the channels that feed it."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.rows = 0
        self.channel_rows = 0
        self.gram: Any = 0.0
        self.sum: Any = 0.0
        self.shift: Any = 0.0
        self.channel_shift: Any = 0.0
        self.channel: Any = 0.0

    def add(self, x: torch.Tensor, share: float, generator: torch.Generator, allowed: torch.Tensor | None = None) -> None:
        """``share``: of all examples, in this batch; ``allowed``: positions that matter."""
        target = max(MIN_ROWS, ROWS_PER_COLUMN * (_columns(self.layer) + 1))
        columns = self.layer.columns(x, ceil(target * share), generator, allowed).float()
        if not self.rows:  # about the mean, so that a large one does not swallow the covariance
            self.shift = columns.mean(dim=1, keepdim=True)
        self.rows += columns.shape[1]
        columns = columns - self.shift
        self.gram = self.gram + columns.mT @ columns
        self.sum = self.sum + columns.sum(dim=1, dtype=torch.float64)
        if self.layer.matrix.kind == "conv":
            drawn = self.layer.sampled_channels(x, ceil(MIN_ROWS * share), generator).float()
        else:
            drawn = columns[0] + self.shift[0]
        if not self.channel_rows:
            self.channel_shift = drawn.mean(dim=0)
        self.channel_rows += len(drawn)
        moved = drawn - self.channel_shift
        sums = [moved.sum(dim=0), moved.square().sum(dim=0), drawn.abs().sum(dim=0), (drawn == 0).sum(dim=0).float()]
        self.channel = self.channel + torch.stack(sums).double()

    def statistics(self) -> LayerStatistics:
        offset = self.sum / self.rows  # of the mean from the shift
        covariance = self.gram.double() / self.rows - offset[:, :, None] * offset[:, None, :]
        if not bool(torch.isfinite(covariance).all()):
            raise WorkloadError(
                f"the input of layer {self.layer.name} holds NaN or infinity on the calibration data: "
                "check the model's weights, or leave out the examples that overflow"
            )
        mean = self.shift[:, 0].double() + offset
        square = covariance.diagonal(dim1=1, dim2=2) + mean.square()
        first, second, absolute, zero = self.channel / self.channel_rows
        return LayerStatistics(
            groups=len(mean),
            rows=self.rows,
            weight_inputs=self.layer.matrix.shape[1],
            covariance=covariance.float().cpu(),
            mean=mean.float().cpu(),
            input_square=square.float().cpu(),
            channel_mean=(self.channel_shift.double() + first).float().cpu(),
            channel_variance=(second - first.square()).clamp(min=0).float().cpu(),
            channel_abs=absolute.float().cpu(),
            channel_zero=zero.float().cpu(),
        )


class _Run:
    def __init__(
        self,
        graph: ModelGraph,
        workload: Workload,
        seed: int,
        targets: bool,
        progress: Progress | None,
        softened: bool = False,
    ) -> None:
        self.graph = graph
        self.module = graph.module
        self.workload = workload
        self.layers = layer_table.find(self.module, graph.matrices)
        self.by_node = {node: layer for layer in self.layers.values() for node in layer.nodes}
        self.total = _count(workload)
        self.seed = seed
        self.targets = targets
        self.softened = softened
        self.progress = progress
        self.device = next(iter(workload.model.parameters()), torch.empty(0)).device

    def batches(self, size: int) -> Iterator[tuple[Inputs, Any]]:
        """Calibration data in batches of at most ``size`` examples, where the model's batch is free."""
        free = self.module.meta.get("free_batch", True)
        seen = 0
        for given, targets in self.workload.batches("calibration"):
            inputs = tuple(x.to(self.device) for x in given)
            count = len(inputs[0]) if inputs[0].ndim else 1
            check_batch(self.workload, free, count)
            splits = splittable(inputs) and free
            whole = not isinstance(targets, torch.Tensor) or len(targets) != count
            for start in range(0, count, size) if splits and (not whole or targets is None) else (None,):
                if start is None:
                    yield inputs, targets
                    seen += count
                else:
                    part = slice(start, start + size)
                    yield tuple(x[part] for x in inputs), None if targets is None else targets[part].to(self.device)
                    seen += min(size, count - start)
                if self.progress is not None:
                    self.progress(seen, max(seen, self.total))

    @torch.no_grad()
    def forward(self, layers: Sequence[Layer], influence: bool) -> Calibration:
        """One pass for the Gram matrices of ``layers`` and the influence of branches."""
        generator = torch.Generator().manual_seed(self.seed)
        by_relevance = any(not x.is_floating_point() for x in self.workload.example_inputs)
        sums: dict[Any, _Sums] = {}
        which: dict[str, _Sums] = {}
        for layer in layers:
            key = (layer.inputs, layer.geometry, layer.batch_dim) if layer.inputs[0] else layer.name
            which[layer.name] = sums.setdefault(key, _Sums(layer))
        chosen = {node for one in sums.values() for node in one.layer.nodes}
        sharing: dict[str, list[str]] = {}  # layers that read the same tensor, by the node whose input is looked at
        for layer in layers:
            for node, first in zip(layer.nodes, which[layer.name].layer.nodes, strict=True):
                sharing.setdefault(first, []).append(node)
        branches = {branch.name: branch.side for branch in self.graph.branches} if influence else {}
        cosines: dict[str, tuple[float, int]] = {}
        relevant: dict[str, torch.Tensor] = {}
        share, examples = 1.0, 0

        def visit(name: str, arguments: tuple[Any, ...], result: Any) -> None:
            if name in chosen:
                layer = self.by_node[name]
                which[layer.name].add(arguments[layer.argument].detach(), share, generator, relevant.get(name))
            if name in branches:
                total, count = cosines.get(name, (0.0, 0))
                cosine = _cosines(arguments[1 - branches[name]], result)
                cosines[name] = (total + float(cosine.sum()), count + cosine.numel())

        with full_precision():
            for inputs, _ in self.batches(GRADIENT_EXAMPLES if by_relevance else FORWARD_EXAMPLES):
                count = len(inputs[0]) if inputs[0].ndim else 1
                share = count / max(self.total, count)
                examples += count
                relevant = relevance(self.module, self.by_node, sharing, inputs) if by_relevance and chosen else {}
                layer_table.run(self.module, inputs, [*chosen, *branches], visit)
        made = {id(one): one.statistics() for one in sums.values() if one.rows}
        return Calibration(
            {
                name: dataclasses.replace(made[id(one)], weight_outputs=self.layers[name].matrix.shape[0])
                for name, one in which.items()
                if id(one) in made
            },
            {name: max(0.0, 1 - total / max(1, count)) for name, (total, count) in cosines.items()},
            examples,
        )

    def backward(self, branches: Mapping[str, int] | None = None, limit: int | None = None) -> Iterator[Backward]:
        """Batch by batch, the gradients of every example's loss.

        Args:
            branches: sums whose gradient is wanted too -> the operand whose value is.
            limit: stop after so many examples.
        """
        generator = torch.Generator(device=self.device).manual_seed(self.seed)
        mutable = _writes_in_place(self.module)
        sides = branches or {}
        seen = 0
        for inputs, targets in self.batches(GRADIENT_EXAMPLES):
            if limit is not None and seen >= limit:
                return
            uses: list[tuple[Layer, torch.Tensor, torch.Tensor]] = []
            sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

            def visit(
                name: str,
                arguments: tuple[Any, ...],
                result: Any,
                uses: list[tuple[Layer, torch.Tensor, torch.Tensor]] = uses,
                sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = sums,
            ) -> Any:
                probe = torch.zeros_like(result, requires_grad=True)
                if name in sides:
                    sums[name] = (arguments[sides[name]].detach().clone(), probe)
                    return result + probe
                layer = self.by_node[name]
                if layer.batch_dim is None:
                    return None
                x = arguments[layer.argument].detach()
                uses.append((layer, x.clone() if mutable else x, probe))
                return result + probe

            count = len(inputs[0]) if inputs[0].ndim else 1
            with torch.enable_grad(), full_precision():
                output = layer_table.run(self.module, inputs, [*self.by_node, *sides], visit)
                loss = self._loss(output, targets, count, generator)
                probes = [*(probe for _, _, probe in uses), *(probe for _, probe in sums.values())]
                found = torch.autograd.grad(loss, probes, allow_unused=True) if loss.requires_grad else [None] * len(probes)
            seen += count
            # A layer that is used several times gets the sum of its uses' gradients.
            parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for (layer, x, _), gradient in zip(uses, found, strict=False):
                if gradient is not None:
                    parts.setdefault(layer.name, []).append((layer.by_example(x), layer.outputs_by_example(gradient)))
            tails = {
                name: (value, gradient)
                for (name, (value, _)), gradient in zip(sums.items(), found[len(uses) :], strict=True)
                if gradient is not None
            }
            yield Backward(count, parts, tails)

    def gradients(self) -> Calibration:
        """One pass with gradients of every example's loss."""
        weights = dict(self.module.named_parameters(remove_duplicate=False))
        absolute: dict[str, torch.Tensor] = {}
        squares: dict[str, torch.Tensor] = {}
        taylor: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        examples = 0
        for batch in self.backward():
            count = batch.examples
            examples += count
            for name, pairs in batch.layers.items():
                layer = self.layers[name]
                w = layer.matrix.rows(weights[name].detach())
                sums = _weight_gradients(pairs, w, layer.matrix.groups, count)
                absolute[name] = absolute.get(name, 0) + sums[0]
                squares[name] = squares.get(name, 0) + sums[1]
                kept = taylor.setdefault(name, ([], []))
                kept[0].append(sums[2])
                kept[1].append(sums[3])
        if not any(bool(square.any()) for square in squares.values()):
            raise UsageError(
                f"no gradient of the loss reaches a layer of {self.workload.name}: criteria that need gradients are not "
                "available (the model rounds its values, or its output does not depend on them)"
            )
        made = {}
        for name, square in squares.items():
            tensors = {
                "grad_abs": absolute[name] / examples,
                "fisher": square / examples,
                "taylor_in": torch.cat(taylor[name][0]),
                "taylor_out": torch.cat(taylor[name][1]),
            }
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                raise WorkloadError(f"gradients of layer {name} hold NaN or infinity on the calibration data")
            matrix = self.layers[name].matrix
            made[name] = LayerStatistics(
                matrix.groups, 0, matrix.shape[0], matrix.shape[1], **{key: tensor.cpu() for key, tensor in tensors.items()}
            )
        return Calibration(made, {}, examples)

    def _loss(self, output: Any, targets: Any, count: int, generator: torch.Generator) -> torch.Tensor:
        """Sum of the examples' losses: the workload's own if it takes the targets, else of labels drawn from the model.

        KL to the model itself has no gradient; labels drawn from its own distribution give the Fisher information instead
        (Kunstner et al. 2019). An output that is no distribution counts as the mean of a Gaussian.
        """
        if targets is not None and self.targets:
            first = output if self.workload.scoring.whole else first_tensor(output)
            single = isinstance(first, torch.Tensor) and isinstance(targets, torch.Tensor) and len(first) == len(targets) == count
            for one in (first, output):
                try:
                    if single and one is first:  # example by example: a weighted mean over a batch is not one over examples
                        losses = [self.workload.loss(one[i : i + 1], targets[i : i + 1]) for i in range(count)]
                        value = torch.stack([item.reshape(()) for item in losses]).mean()
                    else:
                        value = self.workload.loss(one, targets)
                except Exception as error:  # the user's loss may raise anything
                    failure: Exception | None = error
                    continue
                if isinstance(value, torch.Tensor) and value.numel() == 1:
                    return value.reshape(()) * count
                failure = TypeError(f"it gave {type(value).__name__} instead of one number")
            if not self.workload.scoring.agreement:
                raise WorkloadError(
                    f"the loss of workload {self.workload.name!r} can't be computed on the calibration data "
                    f"({type(failure).__name__}: {failure}); pass loss=... that takes (outputs, targets) and returns a scalar"
                )
        floating = [one for one in torch.utils._pytree.tree_leaves(output) if isinstance(one, torch.Tensor) and one.requires_grad]
        if not floating:
            raise UsageError(f"no output of {self.workload.name} has a gradient: criteria that need gradients are not available")
        logits = floating[0]
        if self.softened:
            axis = class_axis(self.workload.scoring, logits.shape, targets)
            return self._softened(logits, axis, generator)
        classes = 1 if logits.ndim in (2, 4, 5) else -1
        if self.workload.scoring.name in ("psnr",) or logits.ndim < 2 or logits.shape[classes] < 2:
            noise = torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
            return (logits * noise).sum()
        scores = logits.movedim(classes, -1).reshape(-1, logits.shape[classes]).log_softmax(dim=-1)
        drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
        return -scores.gather(1, drawn).sum()

    @staticmethod
    def _softened(logits: torch.Tensor, axis: int | None, generator: torch.Generator) -> torch.Tensor:
        """See `backward`."""
        if axis is None:
            return (logits * torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)).sum()
        scores = (logits.movedim(axis, -1) / TEMPERATURE).log_softmax(dim=-1)
        coins = torch.randint(0, 2, scores.shape, generator=generator, device=scores.device, dtype=torch.int8)
        return TEMPERATURE * (scores * scores.detach().mul(0.5).exp() * (coins * 2 - 1)).sum()


def relevance(
    module: fx.GraphModule, by_node: Mapping[str, Layer], sharing: Mapping[str, Sequence[str]], inputs: Inputs
) -> dict[str, torch.Tensor]:
    """Positions of layers whose outputs have any effect on the model's outputs; bool, as `Layer.patches` has them.

    Of token models: a padding token is computed everywhere and used nowhere, and would fill the Gram matrices with what does not
    matter. The gradient of a random projection of the outputs is exactly zero there.

    Args:
        sharing: node -> nodes that read the same input; a position matters if it does to one of them. Nodes of which nothing is
            known are left out of the result.
    """
    probes: dict[str, torch.Tensor] = {}

    def visit(name: str, _arguments: tuple[Any, ...], result: Any) -> Any:
        probes[name] = torch.zeros_like(result, requires_grad=True)
        return result + probes[name]

    with torch.enable_grad():
        output = layer_table.run(module, inputs, [node for nodes in sharing.values() for node in nodes], visit)
        leaves = [one for one in torch.utils._pytree.tree_leaves(output) if isinstance(one, torch.Tensor) and one.requires_grad]
        if not leaves:
            return {}
        generator = torch.Generator().manual_seed(0)
        total = torch.stack([(one * torch.randn(one.shape, generator=generator).to(one)).sum().float() for one in leaves]).sum()
        found = dict(zip(probes, torch.autograd.grad(total, list(probes.values()), allow_unused=True), strict=True))
    masks = {}
    for first, nodes in sharing.items():
        known = [by_node[node].matters(gradient) for node in nodes if (gradient := found.get(node)) is not None]
        if known and bool((mask := torch.stack(known).any(dim=0)).any()):
            masks[first] = mask
    return masks


def _weight_gradients(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], w: torch.Tensor, groups: int, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum over examples of abs(g) and g^2, and per example the sums of w g by input and by output channel.

    ``pairs``: for each use of the weight its input columns (n, G, positions, d) and output gradients (n, G, positions, out / G).
    """
    out, inner = w.shape[:2]
    rows = w.reshape(groups, out // groups, -1).float()
    absolute, square = torch.zeros_like(rows), torch.zeros_like(rows)
    by_in, by_out = [], []
    for gradient in example_gradients(pairs, count, rows.numel()):
        absolute += gradient.abs().sum(dim=0)
        square += gradient.square().sum(dim=0)
        product = gradient * rows
        n = len(product)
        by_out.append(product.sum(dim=3).reshape(n, out))
        by_in.append(product.sum(dim=2).reshape(n, groups * inner, -1).sum(dim=2))
    return absolute.reshape(w.shape), square.reshape(w.shape), torch.cat(by_in), torch.cat(by_out)


def example_gradients(pairs: list[tuple[torch.Tensor, torch.Tensor]], count: int, size: int) -> Iterator[torch.Tensor]:
    """A weight's gradient of each example, (n, G, out / G, d), some examples at a time; ``size``: elements of the weight."""
    # The batch may be folded into more rows (windows of a shifted-window transformer): they follow one another, example by
    # example.
    folded = [
        tuple(
            t.reshape(count, len(t) // count, *t.shape[1:]).transpose(1, 2).flatten(2, 3) if len(t) != count else t for t in pair
        )
        for pair in pairs
        if len(pair[0]) % count == 0
    ]
    step = max(1, TEMPORARY_BYTES // (4 * size))
    for start in range(0, count if folded else 0, step):
        part = slice(start, start + step)
        gradient: Any = 0.0
        for x, g in folded:
            gradient = gradient + g[part].float().mT @ x[part].float()
        yield gradient


def _cosines(skip: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Cosine at every position: over the channels of images, over the features of everything else."""
    dim = 1 if skip.ndim in (4, 5) else -1
    return torch.nn.functional.cosine_similarity(skip.float(), result.float(), dim=dim)


def _count(workload: Workload) -> int:
    """Examples of the calibration data, without reading them where that is possible."""
    loader: Any = workload.calibration
    if isinstance(loader, (list, tuple)):
        return sum(_size(item) for item in loader)
    sampler = getattr(loader, "sampler", None)
    batch_size = getattr(loader, "batch_size", None)
    with contextlib.suppress(TypeError):
        if batch_size and sampler is not None:
            return min(len(sampler), len(loader) * int(batch_size))
    return sum(len(inputs[0]) if inputs[0].ndim else 1 for inputs, _ in workload.batches("calibration"))


def splittable(inputs: Inputs) -> bool:
    """Does every input hold one entry an example?"""
    return all(x.ndim and len(x) == len(inputs[0]) for x in inputs)


def check_batch(workload: Workload, free: bool, count: int) -> None:
    """A model that was captured for one batch size runs with that one only. Raises `WorkloadError`."""
    example = workload.example_inputs[0]
    if not free and example.ndim and count != len(example):
        raise WorkloadError(
            f"a calibration batch of workload {workload.name!r} has {count} examples; the model computes with "
            f"{len(example)} only, as in example_inputs: give batches of that size (drop_last=True leaves out a smaller last one)"
        )


def _size(item: Any) -> int:
    while isinstance(item, (list, tuple)) and item:
        item = item[0]
    return len(item) if isinstance(item, torch.Tensor) and item.ndim else 1


def _writes_in_place(module: fx.GraphModule) -> bool:
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return any(not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable for target in targets)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32: reduced precision (TF32, bfloat16) would spoil Gram matrices (methods 8.1.5)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
