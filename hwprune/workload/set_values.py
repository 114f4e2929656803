"""Metrics that are one number of a whole split: how such a number comes from parts of the split.

A state is made once for each part, and a value from any number of states, so that leaving out parts costs no second look at them.
"""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Part = tuple[Any, Any]
"""Outputs, as the metric takes them, and targets of some examples."""


class SetValue(Protocol):
    """A number of a set of examples."""

    def state(self, parts: Sequence[Part]) -> Any:
        """What has to be known of some parts."""

    def value(self, states: Sequence[Any]) -> float:
        """The number of all states together."""


class FunctionOfSet:
    """A function of lists of outputs and of targets, an entry each part."""

    def __init__(self, function: Callable[[list[Any], list[Any]], Any]) -> None:
        self._function = function

    def state(self, parts: Sequence[Part]) -> Any:
        return list(parts)

    def value(self, states: Sequence[Any]) -> float:
        parts = [part for state in states for part in state]
        return number(self._function([output for output, _ in parts], [target for _, target in parts]))


_MERGES: weakref.WeakKeyDictionary[TorchMetric, bool] = weakref.WeakKeyDictionary()
"""Whether states can be put together. Not kept in the objects, whose contents say which options of the database are theirs."""


class TorchMetric:
    """An object of torchmetrics: ``update`` and ``compute``.

    Args:
        metric: is copied, never changed.
        result: key of the value where ``compute`` gives a dict.
    """

    def __init__(self, metric: Any, result: str | None = None) -> None:
        self._metric, self._result = copy.deepcopy(metric), result
        self._metric.reset()  # what the user has computed with it before is no part of it

    def state(self, parts: Sequence[Part]) -> Any:
        """A copy of the object that has seen the parts, and the parts themselves where copies can't be put together."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about devices, empty images, few samples: for each of many parts
            return self._seen(parts), list(parts)

    def value(self, states: Sequence[Any]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merges = _MERGES.get(self)
            if merges is None and len(states) > 1:  # seen once: some kinds put means together as if each were of one update
                wanted, merged = self._again(states), self._merged(states)
                _MERGES[self] = merged is not None and math.isclose(merged, wanted, rel_tol=1e-5, abs_tol=1e-7)
                return wanted
            merged = self._merged(states) if merges else None
            return self._again(states) if merged is None else merged

    def _seen(self, parts: Sequence[Part]) -> Any:
        one = copy.deepcopy(self._metric)
        for output, target in parts:
            one.update(output, target)
        return one

    def _again(self, states: Sequence[Any]) -> float:
        """The number from all parts, one after another."""
        return self._number(self._seen([part for _, parts in states for part in parts]))

    def _merged(self, states: Sequence[Any]) -> float | None:
        """The number from the copies put together; None where this kind of metric does not allow it."""
        whole = copy.deepcopy(self._metric)
        try:
            for one, _ in states:
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


def number(found: Any) -> float:
    """One number of whatever a metric gives. Raises `TypeError` if it is none."""
    if isinstance(found, torch.Tensor):
        if found.numel() != 1:
            raise TypeError(
                f"a metric must give one number, got a tensor of shape {tuple(found.shape)}: average over classes first"
            )
        return float(found)
    return float(found)
