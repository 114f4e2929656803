"""Metrics that are one number of a whole split: how such a number comes from parts of the split.

A state is made once for each part, and a value from any number of states, so that leaving out parts costs no second look at them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class SetValue(Protocol):
    """A number of a set of examples."""

    def state(self, output: Any, target: Any) -> Any:
        """What has to be known of one part: outputs and targets of some examples."""

    def value(self, states: Sequence[Any]) -> float:
        """The number of all parts together."""


class FunctionOfSet:
    """A function of lists of outputs and of targets, an entry each part."""

    def __init__(self, function: Callable[[list[Any], list[Any]], Any]) -> None:
        self._function = function

    def state(self, output: Any, target: Any) -> Any:
        return output, target

    def value(self, states: Sequence[Any]) -> float:
        return number(self._function([output for output, _ in states], [target for _, target in states]))


class TorchMetric:
    """An object of torchmetrics: ``update`` and ``compute``.

    Args:
        metric: is copied, never changed.
        result: key of the value where ``compute`` gives a dict.
    """

    def __init__(self, metric: Any, result: str | None = None) -> None:
        self._metric, self._result = metric, result
        self._merges: bool | None = None

    def state(self, output: Any, target: Any) -> Any:
        """A copy of the object that has seen the part, and the part itself where copies can't be put together."""
        one = self._empty()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about devices, empty images, few samples: for each of many parts
            one.update(output, target)
        return one, output, target

    def value(self, states: Sequence[Any]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._merges is None:  # seen once: some kinds put means together as if each were of one update
                wanted = self._updated(states)
                merged = self._merged(states)
                self._merges = merged is not None and math.isclose(merged, wanted, rel_tol=1e-5, abs_tol=1e-7)
                return wanted
            merged = self._merged(states) if self._merges else None
            return self._updated(states) if merged is None else merged

    def _updated(self, states: Sequence[Any]) -> float:
        """The number from all parts, one after another."""
        whole = self._empty()
        for _, output, target in states:
            whole.update(output, target)
        return self._number(whole)

    def _merged(self, states: Sequence[Any]) -> float | None:
        """The number from the copies put together; None where this kind of metric does not allow it."""
        whole = self._empty()
        try:
            for one, _, _ in states:
                whole.merge_state(one)
            return self._number(whole)
        except (AttributeError, RuntimeError, ValueError, TypeError):  # torchmetrics < 1.5; states that depend on the order
            return None

    def _number(self, whole: Any) -> float:
        found = whole.compute()
        if isinstance(found, dict):
            if self._result not in found:
                raise ValueError(f"compute() gives {', '.join(map(str, found))}: say which one counts, result=...")
            found = found[self._result]
        return number(found)

    def _empty(self) -> Any:
        one = copy.deepcopy(self._metric)
        one.reset()
        return one


def number(found: Any) -> float:
    """One number of whatever a metric gives. Raises `TypeError` if it is none."""
    if isinstance(found, torch.Tensor):
        if found.numel() != 1:
            raise TypeError(
                f"a metric must give one number, got a tensor of shape {tuple(found.shape)}: average over classes first"
            )
        return float(found)
    return float(found)
