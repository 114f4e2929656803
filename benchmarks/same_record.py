"""Is a search the same as before? Records of three searches whose latencies are computed instead of measured.

A measured latency differs from run to run, and with it all that a search proposes. Here the bench answers with a cost that follows from
the file alone (its weights; zeros are free where 2:4 masks are searched), so that one seed gives one record. Print the records of two versions and compare them:

    python benchmarks/same_record.py --out before.json      # in a checkout of one version
    python benchmarks/same_record.py --out after.json       # in one of the other
    diff before.json after.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwprune.latency.paired import Paired

SEARCHES: dict[str, dict[str, Any]] = {
    "digits": {"workload": "demo:digits", "space": "default", "trials": 16},
    "digits-vit": {"workload": "demo:digits-vit", "space": "default", "trials": 12},
    "masks": {"workload": "demo:digits", "space": "two-four", "trials": 12, "all_patterns": True},
}
LEFT_OUT = frozenset({
    "seconds", "created", "written", "conditions", "footprint", "identity", "versions", "size_bytes", "started", "finished_at", "load_average",
    "code", "history", "time_s", "elapsed_s", "at_s", "calibration_s",
})  # fmt: skip
"""Times, and what belongs to the machine; file sizes hold version strings."""


ZEROS_ARE_FREE = False


def cost(path: Path) -> float:
    """Seconds that follow from a model file."""
    model = onnx.load(str(path))
    count = np.count_nonzero if ZEROS_ARE_FREE else np.size
    weights = sum(int(count(onnx.numpy_helper.to_array(tensor))) for tensor in model.graph.initializer)
    return 1e-5 + 1e-9 * weights + 1e-7 * len(model.graph.node)


def answer(bench: Any, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the measuring process would say."""
    if operation == "micro":
        folder = Path(arguments["folder"])
        pieces = {name: [cost(folder / f"{name}.onnx") / 1e-5, 0.01] for name in arguments["pieces"]}
        return {"pieces": pieces, "errors": {}, "reference_s": 1e-5, "call_s": 1e-6}
    if operation == "profile":
        return {"operators": []}
    if operation == "energy":
        return {"joules": None}
    own, dense = (cost(Path(bench._places[arguments[key]])) for key in ("a", "b"))
    speedup = dense / own
    interval = [speedup * 0.99, speedup * 1.01, own * 0.99, own * 1.01]
    return _paired(dense, own, speedup, interval) if hasattr(Paired, "from_json") else _old_paired(dense, own, speedup, interval)


def _paired(dense: float, own: float, speedup: float, interval: list[float]) -> dict[str, Any]:
    conditions = {
        "clock": "wall", "wall_speedup": speedup, "contended": 0.0, "outliers": 0.0, "throttled": False, "converged": True,
        "quads": 16, "session_sd": 0.005, "log_ratios": [0.0] * 16, "machine": {},
    }  # fmt: skip
    times = {"clock": "wall", "wall_s": own, "dense_s": dense}
    low, high, latency_low, latency_high = interval
    return {
        "speedup": {"value": speedup, "unit": "x", "ci_low": low, "ci_high": high, "samples": 16, "conditions": conditions},
        "latency": {
            "value": own, "unit": "s", "ci_low": latency_low, "ci_high": latency_high, "samples": 16, "conditions": times,
        },
        "samples": {}, "runs_a_block": [1, 1], "again": 0,
    }  # fmt: skip


def _old_paired(dense: float, own: float, speedup: float, interval: list[float]) -> dict[str, Any]:
    """As hwprune 0.1's measuring process answers."""
    low, high, latency_low, latency_high = interval
    return {
        "clock": "wall", "speedup": speedup, "ci_low": low, "ci_high": high, "latency_s": own, "latency_low_s": latency_low,
        "latency_high_s": latency_high, "dense_latency_s": dense, "quads": 16, "runs_a_letter": [1, 1], "wall_speedup": speedup,
        "wall_latency_s": own, "contended": 0.0, "outliers": 0.0, "converged": True, "session_sd": 0.005, "log_ratios": [0.0] * 16,
        "samples": {}, "conditions": {}, "throttled": False,
    }  # fmt: skip


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in sorted(value.items()) if key not in LEFT_OUT}
    if isinstance(value, list):
        return [without_times(part) for part in value]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(SEARCHES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(XDG_CACHE_HOME=f"{folder}/cache", HWPRUNE_DATABASE=f"{folder}/database")

        from hwprune.cli.main import main as command
        from hwprune.latency.bench import Bench

        Bench._exclusive = answer  # type: ignore[method-assign]
        records = {}
        for name in given.only.split(","):
            asked = SEARCHES[name]
            globals()["ZEROS_ARE_FREE"] = bool(asked.get("all_patterns"))
            run = Path(folder) / name
            words = [
                "search",
                asked["workload"],
                "--space",
                asked["space"],
                "--trials",
                str(asked["trials"]),
                "--seed",
                "0",
                "--quiet",
            ]
            words += ["--all-patterns"] if asked.get("all_patterns") else []
            if command([*words, "--out", str(run)]):
                raise SystemExit(f"the search {name} failed")
            records[name] = without_times(json.loads((run / "record.json").read_text()))
        given.out.write_text(json.dumps(records, indent=1, sort_keys=True).replace(folder, "RUN") + "\n")
        print(*(f"{name}: {len(record['trials'])} trials" for name, record in records.items()), sep="\n")


if __name__ == "__main__":
    main()
