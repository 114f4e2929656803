"""Two models one after the other: the second runs only where the first is not sure.

This file is delivered beside the two models as it is, and needs NumPy and ONNX Runtime alone:

    cascade = Cascade("folder")
    outputs = cascade.run([images])          # a batch; examples of which the first model is sure do not reach the second
    cascade.gone_on                          # share of the examples so far that did
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
TINY = 1e-7
"""Least probability whose logarithm is taken."""


class ExitRule:
    """Is a model sure of its answers?

    Args:
        spec: ``output`` (place of the output that holds the answer), ``axis`` (of its classes; null: each entry is a yes or no),
            ``probabilities`` (it holds probabilities, not logits), ``temperature`` (logits are divided by it, so that
            probabilities are as often right as they say), ``threshold`` (the probability from which it is sure), and, where the
            second model goes on from within the first, ``passes``: positions among the first one's ``outputs`` and among the
            ``inputs`` of what it takes, and the ``shapes`` of these for one example.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = dict(spec)
        self.output, self.axis = int(spec["output"]), spec["axis"]
        self.probabilities, self.temperature = bool(spec["probabilities"]), float(spec["temperature"])
        self.threshold = float(spec["threshold"])

    def confidence(self, outputs: Sequence[Array]) -> Array:
        """Probability of each example's answer, (N,); of several positions the least one."""
        values = np.asarray(outputs[self.output])
        if self.axis is None:
            if self.probabilities:
                clipped = np.clip(values, TINY, 1 - TINY)
                values = np.log(clipped) - np.log1p(-clipped)
            likely = 1 / (1 + np.exp(-np.abs(values) / self.temperature))
        else:
            scores = np.log(np.maximum(values, TINY)) if self.probabilities else values
            best = scores.max(axis=self.axis, keepdims=True)
            likely = 1 / np.exp((scores - best) * (1 / self.temperature)).sum(axis=self.axis)
        if likely.ndim > 1:
            likely = likely.reshape(len(likely), -1).min(axis=1)
        found: Array = likely
        return found

    def passed(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Array]:
        """What the second model takes."""
        passes = self.spec.get("passes")
        if not passes:
            return list(inputs)
        return [outputs[place] for place in passes["outputs"]] + [inputs[place] for place in passes["inputs"]]

    def sure(self, outputs: Sequence[Array]) -> Array:
        """True for examples whose answer stands, (N,)."""
        found: Array = self.confidence(outputs) >= self.threshold
        return found


class Cascade:
    """The two models of a folder with ``cascade.json``, in ONNX Runtime.

    Args:
        folder: holds ``cascade.json`` and the files that it names.
        options: for ``onnxruntime.InferenceSession`` (``sess_options``, ``providers``).
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        import onnxruntime

        spec = json.loads((Path(folder) / "cascade.json").read_text())
        options.setdefault("providers", ["CPUExecutionProvider"])
        self._models = [onnxruntime.InferenceSession(str(Path(folder) / name), **options) for name in spec["steps"]]
        self._names = [[one.name for one in model.get_inputs()] for model in self._models]
        self._answers = len(self._models[1].get_outputs())
        self.decision = ExitRule(spec["decision"])
        self._seen = self._on = 0

    @property
    def gone_on(self) -> float:
        """Share of the examples that reached the second model."""
        return self._on / self._seen if self._seen else 0.0

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for a batch, of the first model where it is sure, else of the second."""
        outputs: list[Array] = self._models[0].run(None, dict(zip(self._names[0], inputs, strict=False)))
        rest = np.flatnonzero(~self.decision.sure(outputs))
        self._seen, self._on = self._seen + len(inputs[0]), self._on + len(rest)
        answers = outputs[: self._answers]
        if not len(rest):
            return answers
        passed = self.decision.passed(inputs, outputs)
        if len(rest) < len(inputs[0]):
            passed = [x[rest] for x in passed]
        others: list[Array] = self._models[1].run(None, dict(zip(self._names[1], passed, strict=False)))
        if len(rest) == len(inputs[0]):
            return others
        for mine, theirs in zip(answers, others, strict=True):
            mine[rest] = theirs
        return answers
