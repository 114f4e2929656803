"""The zoo through NVIDIA's parser and builder (TensorRT for RTX), without a GPU: which dense models build, and which cut ones.

    python benchmarks/zoo_builder.py [--only GLOB ...] [--minutes 60] [--targets a100,l4]

Each model is exported, and once more with everything that may be cut cut by half; both files are built for each target's compute
capability, in 32 bits. A cut file that does not build where its dense model does is a fault of ours. The order is drawn, so that a
run that ends early has seen models of all kinds.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common import heading

from hwprune.deploy.build_check import ToBuild, check_builds
from hwprune.errors import CandidateFailure
from hwprune.onnx_files.template import Template
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.runtimes import tensorrt_rtx
from hwprune.structure.torch import analyse, capture

SEED, LIMIT_S, MODEL_S = 0, 180.0, 900.0


def examine(name: str, asked: list[Target]) -> dict[str, Any]:
    """Target -> whether the dense and the cut file build, and why not."""
    import torch
    import zoo
    import zoo_models

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model, inputs = zoo_models.MODELS[name]()
    zoo.randomise(model.eval())
    graph = analyse.analyse(capture.capture(model, inputs))
    keeps = zoo.halves([axis for axis in graph.axes if axis.frozen is None], 3)
    shapes = [list(x.shape) for x in inputs]
    with tempfile.TemporaryDirectory() as folder:
        paths = {"dense": Path(folder) / "dense.onnx", "cut": Path(folder) / "cut.onnx"}
        try:
            template = Template(graph, inputs)
            template.write(graph.module, {}, paths["dense"])
            template.write(graph.cut(keeps), keeps, paths["cut"])
        except CandidateFailure as failure:
            return {"model": name, "export": failure.reason[:200]}
        files = [ToBuild(kind, path, shapes) for kind, path in paths.items()]
        row: dict[str, Any] = {"model": name}
        for target in asked:
            built = check_builds(files, target, limit_s=LIMIT_S)
            row[target.name] = {
                kind: {"builds": one.builds, "why": _why(one), "seconds": round(one.seconds, 1)} for kind, one in built.items()
            }
    return row


def _why(one: tensorrt_rtx.Built) -> str:
    nodes = collections.Counter(node["operator"] for node in one.refused)
    return ", ".join(f"{count}x {name}" for name, count in nodes.items()) or one.reason[:200]


def asked_for(names: str) -> list[Target]:
    """The targets, in 32 bits: a file in 16 would test the converter, too."""
    found = [targets.load(name) for name in names.split(",")]
    return [Target.from_json({**one.to_json(), "precision": "fp32"}) for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--minutes", type=float, default=180.0)
    parser.add_argument("--after", type=int, default=0, help="go on behind so many of the drawn order")
    parser.add_argument("--targets", default="a100,l4")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        print(json.dumps(examine(options.one, asked_for(options.targets))), file=answers)
        return
    import zoo_models

    heading("The zoo through NVIDIA's builder")
    print(f"{tensorrt_rtx.version()}; targets {options.targets}, fp32; seed {SEED}\n", flush=True)
    names = [name for name in zoo_models.MODELS if any(fnmatch(name, glob) for glob in options.only)]
    random.Random(SEED).shuffle(names)
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    for name in names[options.after :]:
        if time.monotonic() - began > 60 * options.minutes:
            break
        rows.append(_one(name, options.targets))
        print(_line(rows[-1]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))
    _summary(rows, options.targets.split(","), len(names))


def _one(name: str, asked: str) -> dict[str, Any]:
    """A model in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, "--targets", asked],
            capture_output=True, text=True, timeout=MODEL_S, check=False,
        )  # fmt: skip
        row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"model": name, "export": f"took longer than {MODEL_S:g} s"}
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"model": name, "export": last[:200]}
    return row


def _line(row: dict[str, Any]) -> str:
    if "export" in row:
        return f"{row['model']}: not built ({row['export']})"
    parts = []
    for target, found in row.items():
        if target != "model":
            words = [f"{kind} {'builds' if one['builds'] else 'REFUSED: ' + one['why']}" for kind, one in found.items()]
            parts.append(f"{target}: {', '.join(words)}")
    return f"{row['model']}: {'; '.join(parts)}"


def _summary(rows: list[dict[str, Any]], asked: list[str], count: int) -> None:
    exported = [row for row in rows if "export" not in row]
    print(f"\n{len(rows)} of {count} models, {len(exported)} exported")
    for target in asked:
        dense = [row for row in exported if row[target]["dense"]["builds"]]
        cut = [row for row in dense if row[target]["cut"]["builds"]]
        faults = [row["model"] for row in dense if not row[target]["cut"]["builds"]]
        print(
            f"{target}: {len(dense)} dense models build, and {len(cut)} of their cut ones; faults: {', '.join(faults) or 'none'}"
        )
        reasons = collections.Counter(row[target]["dense"]["why"] for row in exported if not row[target]["dense"]["builds"])
        for why, number in reasons.most_common():
            print(f"   refused dense: {number}x {why}")


if __name__ == "__main__":
    main()
