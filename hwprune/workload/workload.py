"""What the user brings: a model, data and how to judge."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hwprune.common import formatting, html_table
from hwprune.common.contents import content
from hwprune.errors import WorkloadError
from hwprune.structure.torch.model_forms import ByKeyword, settled
from hwprune.workload import batch_forms, metrics
from hwprune.workload.reading import first_answer, parse_axes

Loader = Iterable[Any]
Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A trained model with its data.

    Attributes:
        name: for reports and file names.
        model: trained ``torch.nn.Module``, compiled or exported (``torch.export``) ones too; it is never changed.
        example_inputs: positional inputs whose shapes are the ones measured (first dim = batch), or a mapping of names to inputs.
        calibration: re-iterable of (inputs, targets): statistics for criteria and compensation.
        validation: re-iterable of (inputs, targets): the search scores candidates on it.
        test: the same; optional; never seen by the search, the front is re-scored on it.
        train: the same; optional; only for recovery training.
        metric: a name of `hwprune.workload.metrics.METRICS`, a `Metric`, or ``metric(outputs, targets)`` -> one score an example.
        loss: for gradient criteria and recovery.
        class_axis: which dim of the outputs holds one score a class (-1: the last one), or ``none`` for numbers; one for each
            output in order where there are several. Default: as the labels' shape says.
        source: where it came from (``demo:digits``, ``file.py:function key=value``); empty for a live object.

    ``inputs`` is a tensor or a tuple of tensors. The outputs are all tensors that a model returns; metrics of your
    own get the first one with an entry for each example (``Metric(whole=True)``: all).
    """

    name: str
    model: nn.Module
    example_inputs: Inputs
    calibration: Loader
    validation: Loader
    test: Loader | None = None
    train: Loader | None = None
    metric: str | metrics.Metric | metrics.Scores = "top1"
    loss: Callable[[Any, Any], torch.Tensor] = field(default=nn.functional.cross_entropy)
    source: str = ""
    class_axis: int | str | Sequence[int | str] | None = None

    def __post_init__(self) -> None:
        faults = []
        model, examples = settled(self.model, self.example_inputs)  # whatever the user passed
        object.__setattr__(self, "model", model)
        if not isinstance(self.name, str) or not self.name:
            faults.append(f"name must be a text, got {self.name!r}")
        if not isinstance(self.model, nn.Module):
            faults.append(f"model must be a torch.nn.Module, got {type(self.model).__name__}")
        if not isinstance(examples, (tuple, list)) or not examples or not all(isinstance(x, torch.Tensor) for x in examples):
            faults.append("example_inputs must be a tuple of tensors (the model's positional arguments), or a mapping of names")
        else:
            object.__setattr__(self, "example_inputs", tuple(examples))
        for split in ("calibration", "validation", "test", "train"):
            loader: Any = getattr(self, split)
            if loader is None and split in ("test", "train"):
                continue
            if not hasattr(loader, "__iter__"):
                faults.append(f"{split} must be a re-iterable of (inputs, targets), got {type(loader).__name__}")
            elif hasattr(loader, "__next__"):
                faults.append(f"{split} is an iterator that can be read only once: pass a DataLoader or a list")
        if not callable(self.loss):
            faults.append("loss must be callable: loss(outputs, targets) -> scalar tensor")
        if faults:
            raise WorkloadError(f"workload {self.name!r} can't be used:", faults)
        metrics.get(self.metric)
        if self.class_axis is not None:
            parse_axes(self.class_axis)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        shapes = ", ".join("x".join(map(str, x.shape)) for x in self.example_inputs)
        splits = [split for split in ("calibration", "validation", "test", "train") if getattr(self, split) is not None]
        rows = [
            ["model", type(self.model).__name__],
            ["parameters", formatting.count(sum(p.numel() for p in self.model.parameters()))],
            ["example inputs", shapes], ["metric", self.scoring.name], ["data", ", ".join(splits)],
            ["source", self.source or "a live Python object"],
        ]  # fmt: skip
        return html_table.table(f"Workload {self.name}", (), rows)

    @property
    def scoring(self) -> metrics.Metric:
        """The metric as a `Metric`."""
        metric = metrics.get(self.metric)
        return metric if self.class_axis is None else replace(metric, class_axis=parse_axes(self.class_axis))

    @property
    def fingerprint(self) -> str:
        """Identifies the model's weights (names, shapes, values); 16 hex digits."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(content(tensor))
        return digest.hexdigest()[:16]

    def batches(self, split: str) -> Iterator[tuple[Inputs, Any]]:
        """The batches of a split as (tuple of input tensors, targets).

        Raises:
            WorkloadError: the loader is empty, raises, or yields something else; says which batch and what to do.
        """
        loader = getattr(self, split)
        if loader is None:
            raise WorkloadError(f"workload {self.name!r} has no {split} data")
        count = 0
        try:
            for item in loader:
                yield self._batch(split, count, item)
                count += 1
        except WorkloadError:
            raise
        except GeneratorExit:
            raise
        except Exception as error:  # the user's loader may raise anything
            raise WorkloadError(
                f"the {split} loader of workload {self.name!r} raised {type(error).__name__} at batch {count}: {error}"
            ) from error
        if count == 0:
            raise WorkloadError(
                f"the {split} loader of workload {self.name!r} is empty: it must yield at least one (inputs, targets) batch"
            )

    def _batch(self, split: str, number: int, item: Any) -> tuple[Inputs, Any]:
        where = f"batch {number} of the {split} loader of workload {self.name!r}"
        inputs, targets = batch_forms.pair(item, len(self.example_inputs), self._arguments, where)
        inputs = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
        if not isinstance(inputs, (tuple, list)) or not all(isinstance(x, torch.Tensor) for x in inputs):
            raise WorkloadError(f"{where}: inputs must be a tensor or a tuple of tensors, got {batch_forms.describe(inputs)}")
        if len(inputs) != len(self.example_inputs):
            raise WorkloadError(f"{where} has {len(inputs)} inputs, example_inputs has {len(self.example_inputs)}")
        if any(len(x) == 0 for x in inputs if x.ndim):
            raise WorkloadError(f"{where} is empty")
        inputs = tuple(
            batch_forms.converted(x, e.dtype, f"{where}: its inputs") for x, e in zip(inputs, self.example_inputs, strict=True)
        )
        for x in inputs:
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise WorkloadError(f"{where} holds NaN or infinity in its inputs: clean the data first")
        # A teacher's outputs are enough to train by.
        if targets is None and not self.scoring.agreement and split != "train":
            raise WorkloadError(f"{where} has no targets; metric {self.scoring.name!r} needs them (metric='agreement' does not)")
        return inputs, batch_forms.targets_of(targets, where)

    def _arguments(self) -> list[str]:
        """Names of the model's arguments, in the order of the inputs."""
        if isinstance(self.model, ByKeyword):
            return list(self.model.names)
        try:
            given = inspect.signature(self.model.forward).parameters.values()
        except (TypeError, ValueError):
            return []
        return [x.name for x in given if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]


def all_tensors(output: Any) -> tuple[torch.Tensor, ...]:
    """All tensors of whatever a model returned. Raises `WorkloadError` if there is none."""
    found = tuple(leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor))
    if not found:
        raise WorkloadError(f"the model returned no tensor, but {batch_forms.describe(output)}")
    return found


def first_tensor(output: Any) -> torch.Tensor:
    """The first tensor of whatever a model returned that is no single number (a loss beside the answers, for instance)."""
    found = all_tensors(output)
    return found[first_answer(found)]
