"""Early exits: a model of the front divided at borders between its blocks, each with a head of its own.

Places are found on the ONNX graph (`hwprune.onnx_files.exit_points`), heads are fitted on what the runtime computes until there
(`hwprune.deploy.exit_heads`). Each exit is one more pair for `hwprune.deploy.cascade_choice`: the first half with its head, and
the rest.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from hwprune.deploy import exit_heads
from hwprune.deploy.cascade_models import Cascader
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency.samples import example_shapes
from hwprune.onnx_files import exit_points, to_onnx
from hwprune.onnx_files.exit_points import ExitPoint
from hwprune.workload import sample_files, scoring
from hwprune.workload.reading import DECISIONS, Reading
from hwprune.workload.workload import Workload

SHARES = (0.2, 0.35, 0.5, 0.65)
"""Shares of the work after which exits are proposed."""
MOST_EXAMPLES = 8192
"""Examples that a head is fitted on."""


@dataclass(frozen=True, slots=True)
class EarlyExit:
    """One exit of one model.

    Attributes:
        key: ``12@35%``: of trial 12, after 35 % of its multiply-accumulates.
        model: key of the whole model.
        answer: file of the first half with its head, which gives the answer alone.
        first, second: the halves; the first gives what crosses behind the answer.
        passes: positions and shapes of what the second takes, see `hwprune.latency.cascade_runner.ExitRule`.
    """

    key: str
    model: str
    answer: Path
    first: Path
    second: Path
    passes: Mapping[str, Any]


def make(found: Cascader, keys: Sequence[str], workload: Workload, reading: Reading, folder: Path) -> list[EarlyExit]:
    """Exits of some of the run's models, with fitted heads, as files in a folder.

    Args:
        workload: gives the train split, or calibration data where there is none.

    Raises:
        UsageError: the models have more than one output, or answers for positions.
        CandidateFailure: a half does not run.
    """
    split = "train" if workload.train is not None else "calibration"
    batches = list(itertools.takewhile(_Counted(MOST_EXAMPLES), workload.batches(split)))
    samples = folder / "fit.npz"
    sample_files.write_batches([(inputs, None) for inputs, _ in batches], samples)
    labels = _labels([target for _, target in batches], reading)
    made = []
    for key in keys:
        model = onnx.load(found.models[key])
        for point in _points(model, found):
            made.append(_exit(found, key, (model, point), (samples, labels), reading, folder))
    return made


def _points(model: onnx.ModelProto, found: Cascader) -> list[ExitPoint]:
    if len(model.graph.output) != 1:
        raise UsageError(f"early exits are made of models with one output; this one has {len(model.graph.output)}")
    shapes = dict(zip((item.name for item in model.graph.input), example_shapes(found.example), strict=False))
    return exit_points.proposed(exit_points.find(model, shapes), SHARES)


def _exit(
    found: Cascader,
    key: str,
    place: tuple[onnx.ModelProto, ExitPoint],
    data: tuple[Path, torch.Tensor | None],
    reading: Reading,
    folder: Path,
) -> EarlyExit:
    model, point = place
    samples, labels = data
    name = f"{key}@{100 * point.share:.0f}%"
    home = Path(tempfile.mkdtemp(dir=folder))
    to_onnx.save_onnx(exit_points.features(model, point), home / "features.onnx")
    out = home / "outputs.npz"
    with found.make() as bench:
        bench.load("features", home / "features.onnx")
        bench.run("features", samples, out)
        features = torch.cat([batch[0] for batch in scoring.read_outputs(out)])
        bench.load("whole", found.models[key])
        bench.run("whole", samples, out)
        answers = torch.cat([batch[reading.place] for batch in scoring.read_outputs(out)])
    if answers.ndim != 2:
        raise CandidateFailure(
            "exits", f"answers of shape {tuple(answers.shape)} are of positions; an exit has one for an example"
        )
    scores = reading.class_scores(answers)
    assert scores is not None
    weight, bias = exit_heads.fit(features, scores.reshape(len(scores), -1).softmax(dim=1), labels)
    end = None
    if reading.kind == DECISIONS:  # the logit of yes is what the two classes differ by
        weight, bias = weight[1:] - weight[:1], bias[:, 1:] - bias[:, :1]
        end = "Sigmoid" if reading.probabilities else None
    elif reading.probabilities:
        end = "Softmax"
    first, second = exit_points.halves(model, point, weight, bias[0], end)
    answer = exit_points.without_crossing(first)
    files = {"answer": answer, "first": first, "second": second}
    for word, proto in files.items():
        to_onnx.save_onnx(proto, home / f"{word}.onnx")
    inputs = [item.name for item in model.graph.input]
    crossing = 1 + len(point.others)
    own = [inputs.index(item.name) for item in second.graph.input if item.name in inputs]
    whole_shapes = example_shapes(found.example)
    shapes = [point.shape, *point.other_shapes, *(whole_shapes[place] for place in own)]
    passes = {"outputs": list(range(1, 1 + crossing)), "inputs": own, "shapes": [list(shape) for shape in shapes]}
    return EarlyExit(name, key, home / "answer.onnx", home / "first.onnx", home / "second.onnx", passes)


class _Counted:
    """True until so many examples have been seen."""

    def __init__(self, most: int) -> None:
        self._left = most

    def __call__(self, batch: tuple[tuple[torch.Tensor, ...], Any]) -> bool:
        left, self._left = self._left, self._left - len(batch[0][0])
        return left > 0


def _labels(targets: Sequence[Any], reading: Reading) -> torch.Tensor | None:
    """Classes of all examples, or None where targets are none."""
    if not all(isinstance(target, torch.Tensor) for target in targets):
        return None
    flat = torch.cat(
        [target.argmax(dim=1) if target.ndim == 2 and target.shape[1] > 1 else target.reshape(-1) for target in targets]
    )
    whole = not flat.is_floating_point() or (reading.kind == DECISIONS and bool(((flat == 0) | (flat == 1)).all()))
    return flat.long() if whole and bool((flat >= 0).all()) else None
