"""The files of a cascade: whether one file gives what the two give, and how long each form takes on single inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hwprune.latency import varying
from hwprune.latency.bench import Bench
from hwprune.latency.cascade_runner import ExitRule
from hwprune.latency.samples import read_batches
from hwprune.latency.varying import Distribution
from hwprune.onnx_files.cascade_file import with_exit, with_if
from hwprune.workload import sample_files, scoring
from hwprune.workload.scoring import Outputs

DENSE, TWO_FILES, ONE_FILE, SINGLE = "dense", "cascade", "one file", "single"
"""Names of what is measured: the dense model, the two files, the one with an ``If``, and the best single model."""
SECOND = "second"
"""Key of the second model, which in an early exit takes what crosses."""
PROCESSES, EXAMPLES, LIMIT_S = 6, 300, 8.0
"""Fresh processes that measure (the extremes of six hold the median with 96.9 %), examples that each times, and its seconds."""
CHECKED = 64
"""Examples of each branch on which the one file is compared with the two."""


@dataclass(frozen=True, slots=True)
class TwoFiles:
    """Two files that are delivered together.

    Attributes:
        answers: gives the first one's answer alone.
        whole: what examples that go on must get, from the same inputs.
        passes: of an early exit, what the second takes of the first, see `hwprune.latency.cascade_runner.ExitRule`.
    """

    first: Path
    second: Path
    answers: Path
    whole: Path
    passes: Mapping[str, Any] | None = None

    def one_file(self, rule: Mapping[str, Any]) -> onnx.ModelProto:
        """Both in one model. Raises `UsageError`."""
        first, second = onnx.load(self.first), onnx.load(self.second)
        return with_if(first, second, rule) if self.passes is None else with_exit(first, second, rule)


def chained(make: Callable[[], Bench], pair: TwoFiles, samples: Path) -> float:
    """The largest relative difference of the second half of an early exit, given what the first gives, from the whole model.

    Raises:
        CandidateFailure: a half does not run.
    """
    assert pair.passes is not None
    singles = varying.drawn(read_batches(str(samples)), CHECKED)
    with tempfile.TemporaryDirectory() as scratch, make() as bench:
        given, out = Path(scratch) / "samples.npz", Path(scratch) / "outputs.npz"

        def outputs(path: Path, batches: Sequence[Sequence[np.ndarray[Any, Any]]], shapes: Sequence[Any] = ()) -> Outputs:
            sample_files.write_batches([(tuple(torch.from_numpy(x) for x in one), None) for one in batches], given)
            bench.load("model", path, shapes=shapes)
            bench.run("model", given, out)
            return scoring.read_outputs(out)

        wanted, first = outputs(pair.whole, singles), outputs(pair.first, singles)
        rule = ExitRule({"output": 0, "axis": 1, "probabilities": False, "temperature": 1, "threshold": 2, "passes": pair.passes})
        passed = [rule.passed(one, [x.numpy() for x in batch]) for one, batch in zip(singles, first, strict=True)]
        return scoring.largest_difference(outputs(pair.second, passed, pair.passes["shapes"]), wanted)


def compare(
    make: Callable[[], Bench], files: Mapping[str, Path], spec: Mapping[str, Any], folder: Path
) -> tuple[float, tuple[int, int]]:
    """The largest relative difference of the one file from the two on single examples, and how many of these took each branch.

    Examples that end at the first model and examples that go on are taken in turn, as far as there are both.

    Args:
        files: ``one file``, ``first`` (its answer alone) and ``second`` (what examples that go on must get).
        folder: holds ``samples.npz``.

    Raises:
        CandidateFailure: a file does not run.
    """
    decide = ExitRule(spec)
    singles = varying.drawn(read_batches(str(folder / "samples.npz")), 8 * CHECKED)
    with tempfile.TemporaryDirectory() as scratch, make() as bench:
        samples, out = Path(scratch) / "samples.npz", Path(scratch) / "outputs.npz"
        sample_files.write_batches([(tuple(torch.from_numpy(x) for x in one), None) for one in singles], samples)
        outputs: dict[str, Outputs] = {}
        for name, path in files.items():
            bench.load("model", path)
            bench.run("model", samples, out)
            outputs[name] = scoring.read_outputs(out)
    sure = [bool(decide.sure([x.numpy() for x in batch]).all()) for batch in outputs["first"]]
    ends, goes_on = ([i for i, value in enumerate(sure) if value is wanted][:CHECKED] for wanted in (True, False))
    worst = 0.0
    for places, name in ((ends, "first"), (goes_on, "second")):
        if places:
            mine, wanted = ([outputs[key][i] for i in places] for key in (ONE_FILE, name))
            worst = max(worst, scoring.largest_difference(mine, wanted))
    return worst, (len(ends), len(goes_on))


def distributions_of(
    make: Callable[[], Bench], files: Mapping[str, Path], systems: Mapping[str, Mapping[str, Any]], samples: Path,
    passes: Mapping[str, Any] | None = None,
) -> dict[str, Distribution]:  # fmt: skip
    """Latency of systems over inputs, from fresh processes; files are loaded in turned order. Raises `CandidateFailure`."""
    processes = []
    for number in range(PROCESSES):
        with make() as bench:
            keys = list(files)
            for key in keys[number % len(keys) :] + keys[: number % len(keys)]:  # who is loaded first gets other memory
                bench.load(key, files[key], shapes=passes["shapes"] if passes and key == SECOND else ())
            processes.append(bench.varying(systems, samples, EXAMPLES, LIMIT_S))
    return varying.distributions(processes, DENSE)


def joined(decide: ExitRule, first: Outputs, second: Outputs) -> tuple[Outputs, int, int]:
    """Outputs of the cascade, how many examples end at the first model, and how many there are."""
    outputs: Outputs = []
    ended = count = 0
    for mine, theirs in zip(first, second, strict=True):
        sure = torch.from_numpy(decide.sure([x.numpy() for x in mine]))
        ended, count = ended + int(sure.sum()), count + len(sure)
        outputs.append(tuple(torch.where(sure.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(mine, theirs, strict=True)))
    return outputs, ended, count
