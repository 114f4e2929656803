"""The folder of a cascade: its two files, the one with an ``If``, the runner, and cascade.json; and what is known of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.common.files import dump_json, sha256, write_atomic
from hwprune.deploy.cascade_choice import NOBODY, CascadePlan
from hwprune.deploy.cascade_files import DENSE, ONE_FILE, TwoFiles, chained, compare
from hwprune.deploy.cascade_models import Cascader
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import cascade_runner
from hwprune.latency.varying import Distribution
from hwprune.onnx_files import to_onnx
from hwprune.records.measurement import Measurement
from hwprune.report import cascade_page
from hwprune.workload import closeness

RUNNER = "run_cascade.py"


@dataclass(frozen=True, slots=True)
class Told:
    """One system as it is told: accuracy on the split that chose nothing, and its latency over inputs."""

    name: str
    metric: Measurement
    drop: Measurement
    latency: Distribution

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric.to_json(), "drop": self.drop.to_json(), "latency": self.latency.to_json()}


@dataclass(frozen=True, slots=True)
class CascadeResult:
    """A delivered cascade.

    Attributes:
        exits: share of the examples of ``split`` that end at the first model.
        systems: the dense model, the two files, the one file if there is one, and the best single model; by name.
        deploy: the faster form, ``cascade`` or ``one file``.
        without_one_file: why there is none, or None.
        single: key of the best single model within the same limit.
        over_single: mean latency of that over the deployed form's, on the same inputs.
        curve: (drop, mean seconds) of the pair for every threshold, on validation.
        models: (drop, seconds) of each model alone, on validation.
        missed: what was asked for and did not come out, as sentences.
    """

    plan: CascadePlan
    split: str
    exits: Measurement
    systems: Mapping[str, Told]
    deploy: str
    without_one_file: str | None
    single: str
    over_single: Measurement
    curve: Sequence[tuple[float, float]]
    models: Mapping[str, tuple[float, float]]
    share: bool
    missed: tuple[str, ...] = ()


def write(found: Cascader, pair: TwoFiles, rule: Mapping[str, Any], out: Path) -> TwoFiles:
    """The two files, their runner and the samples; where they are now."""
    copied = {"first.onnx": pair.first, "second.onnx": pair.second}
    if pair.passes is not None:  # what verify compares with
        copied |= {"answer.onnx": pair.answers, "whole.onnx": pair.whole}
    for name, path in copied.items():
        shutil.copyfile(path, out / name)
    shutil.copyfile(Path(cascade_runner.__file__), out / RUNNER)
    shutil.copyfile(found.files[found.split], out / "samples.npz")
    write_atomic(out / "cascade.json", dump_json({"schema": 1, "steps": ["first.onnx", "second.onnx"], "decision": dict(rule)}))
    first, second = out / "first.onnx", out / "second.onnx"
    return TwoFiles(
        first, second, *(first, second) if pair.passes is None else (out / "answer.onnx", out / "whole.onnx"), pair.passes
    )


def write_one_file(found: Cascader, pair: TwoFiles, rule: Mapping[str, Any], out: Path) -> str | None:
    """``model.onnx`` with an ``If``; the reason why there is none, or None.

    Both branches are run: it must give what the two files give, on examples of which some end at each.

    Raises:
        CandidateFailure: the halves of an early exit do not give what the whole model gives.
    """
    tolerance = closeness.TOLERANCES[found.target.precision]
    if pair.passes is not None and not (apart := chained(found.make, pair, out / "samples.npz")) <= tolerance:
        raise CandidateFailure("parity", f"the two halves differ from the whole model by {apart:.2g} of the largest output")
    path = out / "model.onnx"
    try:
        worst = 0.0
        for threshold in (0.0, NOBODY, rule["threshold"]):  # one branch for all inputs, then the other, then as it is delivered
            to_onnx.save_onnx(pair.one_file({**rule, "threshold": threshold}), path)
            files = {ONE_FILE: path, "first": pair.answers, "second": pair.whole}
            worst = max(worst, compare(found.make, files, {**rule, "threshold": threshold}, out)[0])
    except (UsageError, CandidateFailure) as error:
        path.unlink(missing_ok=True)
        return error.reason if isinstance(error, CandidateFailure) else str(error)
    if not worst <= tolerance:
        path.unlink(missing_ok=True)
        return f"the one file differs from the two by {worst:.2g} of the largest output"
    return None


def finish(found: Cascader, result: CascadeResult, rule: Mapping[str, Any], pair: TwoFiles, out: Path) -> None:
    """cascade.json with everything that was measured, and the dense model beside it for `verify`."""
    shutil.copyfile(found.models[DENSE], out / "dense.onnx")
    data = found.record.data
    listed = ["first.onnx", "second.onnx", RUNNER, "samples.npz", "dense.onnx"]
    listed += ["answer.onnx", "whole.onnx"] if pair.passes is not None else []
    listed += ["model.onnx"] if result.without_one_file is None else []
    facts: dict[str, Any] = {
        "schema": 1, "steps": ["first.onnx", "second.onnx"], "decision": dict(rule), "deploy": result.deploy,
        "trials": [result.plan.first, result.plan.second], "single": result.single,
        "over_single": result.over_single.to_json(), "without_one_file": result.without_one_file,
        "validation": {"drop": result.plan.drop, "seconds": result.plan.seconds, "exits": result.plan.exits},
        "told": cascade_page.verdict(result), "table": [cascade_page.HEADER, *cascade_page.rows(result)],
        "split": result.split, "missed": list(result.missed), "exits": result.exits.to_json(),
        "systems": {name: told.to_json() for name, told in result.systems.items()},
        "workload": {key: data["workload"].get(key) for key in ("name", "metric", "class_axis", "source")},
        "target": data["target"], "fingerprint": data["fingerprint"],
        "files": {name: sha256(out / name) for name in listed},
    }  # fmt: skip
    write_atomic(out / "cascade.json", dump_json(facts))
