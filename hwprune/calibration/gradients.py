"""Gradients of every example's loss, for criteria that need them and for the search's own error model.

One file because what stands in for a loss and how its gradients are kept by example are one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hwprune.calibration.gram import Calibration
from hwprune.calibration.passes import GRADIENT_EXAMPLES, CalibrationPass, full_precision
from hwprune.errors import UsageError, WorkloadError
from hwprune.layers import layer as layer_table
from hwprune.layers.layer import Layer
from hwprune.layers.statistics import LayerStatistics
from hwprune.structure.model_graph import ModelGraph
from hwprune.workload.reading import class_axis, given_axis, has_examples
from hwprune.workload.task_loss import loss_input, task_loss
from hwprune.workload.workload import Inputs, Workload, all_tensors

TEMPERATURE = 3.0
"""Temperature of the logits whose divergence is predicted (see `backward`). A network knows its calibration data better than the
data that
decide, so the Fisher information of its sharp distribution there says little: over 43 random recipes of ResNet-20 the rank
correlation of predicted and true KL is 0.942 at temperature 1, 0.984 at 2, 0.989 at 3 and 0.990 at 4 (`benchmarks/engine.py
--only prior --recipes 70`); on a network that is less sure it is 0.990 at all four."""
TEMPORARY_BYTES = 128_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """One batch's gradients.

    Attributes:
        layers: weight's name -> for each use its input columns (n, G, positions, d) and output gradients (n, G, positions,
            out / G).
        sums: sum's name -> the value of one operand, and the gradient of the sum.
        inputs: of the model.
        outputs: each output that has a gradient: its place among all, its value, and the gradient.
    """

    examples: int
    layers: Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]
    sums: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    inputs: Inputs = ()
    outputs: Sequence[tuple[int, torch.Tensor, torch.Tensor]] = ()


def backward(graph: ModelGraph, workload: Workload, branches: Mapping[str, int], limit: int, seed: int = 0) -> Iterator[Backward]:
    """Gradients of a random scalar z of each example's outputs whose mean square along a change is its Fisher information.

    Of logits at temperature `TEMPERATURE`, z = T sum_c sqrt(p_c) s_c log p_c with random signs s: a drawn label has the same
    mean square, but is dominated by rare events where the model is sure, as it is on its training data. An output that is no
    distribution counts as the mean of a Gaussian of unit variance.

    Raises:
        WorkloadError: the data can't be used.
        UsageError: the model's output has no gradient.
    """
    data = CalibrationPass(graph, workload, seed, progress=None)
    return GradientPass(data, targets=False, softened=True).backward(branches, limit)


def weight_gradients(
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


def writes_in_place(module: fx.GraphModule) -> bool:
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return any(not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable for target in targets)


class GradientPass:
    """Passes with gradients of each example's loss.

    Args:
        data: the calibration data and the model's layers.
        targets: the loss takes the targets of the data; else labels drawn from the model.
        softened: the scalar of `backward` instead of a loss.
    """

    def __init__(self, data: CalibrationPass, *, targets: bool, softened: bool = False) -> None:
        self.data = data
        self.targets = targets
        self.task_loss = task_loss(data.workload, data.module, "calibration") if targets else data.workload.loss
        self.softened = softened

    def backward(self, branches: Mapping[str, int] | None = None, limit: int | None = None) -> Iterator[Backward]:
        """Batch by batch, the gradients of every example's loss.

        Args:
            branches: sums whose gradient is wanted too -> the operand whose value is.
            limit: stop after so many examples.
        """
        generator = torch.Generator(device=self.data.device).manual_seed(self.data.seed)
        mutable = writes_in_place(self.data.module)
        sides = branches or {}
        seen = 0
        for inputs, targets in self.data.batches(GRADIENT_EXAMPLES):
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
                layer = self.data.by_node[name]
                if layer.batch_dim is None:
                    return None
                x = arguments[layer.argument].detach()
                uses.append((layer, x.clone() if mutable else x, probe))
                return result + probe

            count = len(inputs[0]) if inputs[0].ndim else 1
            with torch.enable_grad(), full_precision():
                output = layer_table.run(self.data.module, inputs, [*self.data.by_node, *sides], visit)
                loss = self._loss(output, targets, count, generator)
                answers = [(i, leaf) for i, leaf in enumerate(all_tensors(output)) if leaf.requires_grad]
                probes = [
                    *(probe for _, _, probe in uses),
                    *(probe for _, probe in sums.values()),
                    *(leaf for _, leaf in answers),
                ]
                by_probe = torch.autograd.grad(loss, probes, allow_unused=True) if loss.requires_grad else [None] * len(probes)
            seen += count
            # A layer that is used several times gets the sum of its uses' gradients.
            parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for (layer, x, _), gradient in zip(uses, by_probe, strict=False):
                if gradient is not None:
                    parts.setdefault(layer.name, []).append((layer.by_example(x), layer.outputs_by_example(gradient)))
            tails = {
                name: (value, gradient)
                for (name, (value, _)), gradient in zip(sums.items(), by_probe[len(uses) :], strict=False)
                if gradient is not None
            }
            outputs = [
                (place, leaf.detach(), gradient)
                for (place, leaf), gradient in zip(answers, by_probe[len(uses) + len(sums) :], strict=True)
                if gradient is not None
            ]
            yield Backward(count, parts, tails, inputs, outputs)

    def gradients(self) -> Calibration:
        """One pass with gradients of every example's loss."""
        weights = dict(self.data.module.named_parameters(remove_duplicate=False))
        absolute: dict[str, torch.Tensor] = {}
        squares: dict[str, torch.Tensor] = {}
        taylor: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        examples = 0
        for batch in self.backward():
            count = batch.examples
            examples += count
            for name, pairs in batch.layers.items():
                layer = self.data.layers[name]
                w = layer.matrix.rows(weights[name].detach())
                sums = weight_gradients(pairs, w, layer.matrix.groups, count)
                absolute[name] = absolute.get(name, 0) + sums[0]
                squares[name] = squares.get(name, 0) + sums[1]
                kept = taylor.setdefault(name, ([], []))
                kept[0].append(sums[2])
                kept[1].append(sums[3])
        if not any(bool(square.any()) for square in squares.values()):
            raise UsageError(
                f"no gradient of the loss reaches a layer of {self.data.workload.name}: criteria that need gradients are not "
                "available (the model rounds its values, or its output does not depend on them)"
            )
        statistics = {}
        for name, square in squares.items():
            tensors = {
                "grad_abs": absolute[name] / examples,
                "fisher": square / examples,
                "taylor_in": torch.cat(taylor[name][0]),
                "taylor_out": torch.cat(taylor[name][1]),
            }
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                raise WorkloadError(f"gradients of layer {name} hold NaN or infinity on the calibration data")
            matrix = self.data.layers[name].matrix
            statistics[name] = LayerStatistics(
                matrix.groups, 0, matrix.shape[0], matrix.shape[1], **{key: tensor.cpu() for key, tensor in tensors.items()}
            )
        return Calibration(statistics, {}, examples)

    def _loss(self, output: Any, targets: Any, count: int, generator: torch.Generator) -> torch.Tensor:
        """Sum of the examples' losses: the workload's own if it takes the targets, else of labels drawn from the model.

        KL to the model itself has no gradient; labels drawn from its own distribution give the Fisher information instead
        (Kunstner et al. 2019). An output that is no distribution counts as the mean of a Gaussian.
        """
        drawn = getattr(self.data.workload.scoring.divergence, "drawn", None)  # of a metric that knows what its outputs mean
        if targets is not None and self.targets:
            first = loss_input(self.data.workload, output)
            single = isinstance(first, torch.Tensor) and isinstance(targets, torch.Tensor) and len(first) == len(targets) == count
            for answer in (first, output):
                try:
                    if single and answer is first:  # example by example: a weighted mean over a batch is not one over examples
                        losses = [self.task_loss(answer[i : i + 1], targets[i : i + 1]) for i in range(count)]
                        value = torch.stack([item.reshape(()) for item in losses]).mean()
                    else:
                        value = self.task_loss(answer, targets)
                except Exception as error:  # the user's loss may raise anything
                    failure: Exception | None = error
                    continue
                if isinstance(value, torch.Tensor) and value.numel() == 1:
                    loss = value.reshape(()) * count
                    return loss + self._of_others(output, answer, generator) if answer is first and single else loss
                failure = TypeError(f"it gave {type(value).__name__} instead of one number")
            default = self.data.workload.loss is torch.nn.functional.cross_entropy  # the user has given none
            if not self.data.workload.scoring.agreement and not (callable(drawn) and default):
                raise WorkloadError(
                    f"the loss of workload {self.data.workload.name!r} can't be computed on the calibration data "
                    f"({type(failure).__name__}: {failure}); pass loss=... that takes (outputs, targets) and returns a scalar"
                )
        if callable(drawn):
            scalar: torch.Tensor = drawn(all_tensors(output), generator)
            return scalar
        floating = [
            leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        if not floating:
            raise UsageError(
                f"no output of {self.data.workload.name} has a gradient: criteria that need gradients are not available"
            )
        places = {id(leaf): place for place, leaf in enumerate(all_tensors(output))}
        first, *others = [leaf for leaf in floating if leaf.ndim] or floating[:1]
        parts = [self._drawn(first, targets, generator, places[id(first)], answers=True)]
        parts += [self._drawn(leaf, None, generator, places[id(leaf)], answers=False) for leaf in others]
        return torch.stack(parts).sum()

    def _of_others(self, output: Any, answer: torch.Tensor, generator: torch.Generator) -> torch.Tensor | float:
        """Outputs that a loss of the answer says nothing of: without them, what only they read would count for nothing."""
        drawn = [
            self._drawn(leaf, None, generator, place, answers=False)
            for place, leaf in enumerate(all_tensors(output))
            if leaf is not answer and leaf.requires_grad and has_examples(leaf, len(answer))
        ]
        return sum(drawn, start=0.0)

    def _drawn(
        self, logits: torch.Tensor, targets: Any, generator: torch.Generator, place: int, *, answers: bool
    ) -> torch.Tensor:
        """The scalar of one output, at its place among all.

        Args:
            answers: it is the one that labels are of; numbers of the others count by their own spread.
        """
        scoring = self.data.workload.scoring
        told = class_axis(scoring, logits.shape, targets, place)
        if not answers and not scoring.agreement and not isinstance(given_axis(scoring, place, logits.shape), int):
            told = None  # labels say nothing of it
        if not answers and told is None:
            logits = logits / logits.detach().std(correction=0).clamp(min=1e-12)
        if self.softened:
            return self._softened(logits, told, generator)
        classes = told if told is not None else 1 if logits.ndim in (2, 4, 5) else -1
        plain = not answers and told is None
        if plain or scoring.name in ("psnr",) or logits.ndim < 2 or logits.shape[classes] < 2:
            noise = torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
            return (logits * noise).sum()
        scores = logits.movedim(classes, -1).reshape(-1, logits.shape[classes]).log_softmax(dim=-1)
        drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
        return -scores.gather(1, drawn).sum()

    @staticmethod
    def _softened(logits: torch.Tensor, axis: int | None, generator: torch.Generator) -> torch.Tensor:
        """The scalar that stands in for a loss, as the function `backward` explains it."""
        if axis is None:
            return (logits * torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)).sum()
        scores = (logits.movedim(axis, -1) / TEMPERATURE).log_softmax(dim=-1)
        coins = torch.randint(0, 2, scores.shape, generator=generator, device=scores.device, dtype=torch.int8)
        return TEMPERATURE * (scores * scores.detach().mul(0.5).exp() * (coins * 2 - 1)).sum()
