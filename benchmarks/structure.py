"""Torch-Pruning with its defaults and no hints, side by side with hwprune on the models of the zoo; and hwprune's own times.

python benchmarks/structure.py [--only GLOB ...] [--json FILE]

Needs the zoo's environment (``make bench-structure`` makes it). Both prune by half whatever they find; "works" means: no exception, the
pruned model runs, has fewer parameters, and (hwprune) equals the masked one. For Torch-Pruning the output must be finite and of the
right shape; whether its cut is right it does not say.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hwprune.structure.torch import capture

TIMEOUT = 40


def torch_pruning(name: str) -> dict[str, Any]:
    """MagnitudePruner at ratio 0.5 with its defaults; only the layers that make the outputs are ignored."""
    import torch
    import torch_pruning as tp
    import zoo
    import zoo_models

    torch.manual_seed(0)
    model, inputs = zoo_models.MODELS[name]()
    model.eval()
    zoo.randomise(model)
    tree = torch.utils._pytree.tree_leaves
    with torch.no_grad():
        before = [tuple(x.shape) for x in tree(model(*inputs)) if isinstance(x, torch.Tensor)]
    params = sum(p.numel() for p in model.parameters())
    example = inputs[0] if len(inputs) == 1 else list(inputs)
    # The outputs must keep their shapes, which its defaults don't see to: for each output the last layer of that size is left out.
    ignored = []
    for shape in before:
        fits = [
            layer
            for layer in model.modules()
            if (isinstance(layer, torch.nn.Linear) and shape and layer.out_features == shape[-1])
            or (isinstance(layer, torch.nn.Conv2d) and len(shape) == 4 and layer.out_channels == shape[1])
        ]
        ignored += fits[-1:]
    start = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        model, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=ignored
    )
    pruner.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        after = [x for x in tree(model(*inputs)) if isinstance(x, torch.Tensor)]
    if [tuple(x.shape) for x in after] != before:
        return {"works": False, "why": "the output's shape changed"}
    if not all(bool(torch.isfinite(x).all()) for x in after if x.is_floating_point()):
        return {"works": False, "why": "the output is not finite"}
    kept = sum(p.numel() for p in model.parameters()) / params
    return {"works": kept < 0.98, "why": "" if kept < 0.98 else "nothing was cut", "seconds": seconds, "kept": kept}


def hwprune_(name: str) -> dict[str, Any]:
    """Everything that may be cut, by half; every exact axis against the mask."""
    import torch
    import zoo
    import zoo_models

    from hwprune.structure.torch import analyse

    torch.manual_seed(0)
    model, inputs = zoo_models.MODELS[name]()
    model.eval()
    zoo.randomise(model)
    start = time.perf_counter()
    captured = capture.capture(model, inputs)
    traced = time.perf_counter()
    graph = analyse.analyse(captured)
    analysed = time.perf_counter()
    free = [axis for axis in graph.axes if axis.frozen is None]
    small = graph.cut(zoo.halves(free, 3))
    cut = time.perf_counter()
    with torch.no_grad():
        small(*inputs)
    keeps = zoo.halves([axis for axis in free if axis.exact], 1)
    error, _ = zoo.difference(graph.cut(keeps), graph.mask(keeps), inputs)
    kept = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return {
        "works": bool(kept < 0.98 and error <= 1e-5),
        "why": "",
        "seconds": cut - start,
        "trace": traced - start,
        "analyse": analysed - traced,
        "cut": cut - analysed,
        "kept": kept,
        "nodes": len(captured.graph.nodes),
    }


def work() -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        tool, _, name = line.strip().partition(" ")
        try:
            row = (torch_pruning if tool == "tp" else hwprune_)(name)
        except BaseException as error:  # noqa: BLE001 - whatever a tool raises is its result
            row = {"works": False, "why": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160]}
        print(json.dumps(row), file=answers, flush=True)


def ask(names: queue.Queue[str], rows: dict[str, dict[str, Any]]) -> None:
    worker = None
    while True:
        try:
            name = names.get_nowait()
        except queue.Empty:
            if worker:
                worker.kill()
            return
        rows[name] = {}
        for tool in ("hwprune", "tp"):
            if worker is None or worker.poll() is not None:
                words = [sys.executable, __file__, "--worker"]
                worker = subprocess.Popen(
                    words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            assert worker.stdin and worker.stdout
            timer = threading.Timer(TIMEOUT, worker.kill)
            timer.start()
            worker.stdin.write(f"{tool} {name}\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            timer.cancel()
            if not line:
                worker.wait()
            rows[name][tool] = json.loads(line) if line else {"works": False, "why": f"died or took more than {TIMEOUT} s"}
        print(
            f"{name:45s}",
            *(f"{tool}: {'works' if row['works'] else 'FAILS ' + row['why'][:90]}" for tool, row in rows[name].items()),
            flush=True,
        )


def main() -> None:
    from common import heading

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        return work()
    import zoo_models

    heading("structure: hwprune and Torch-Pruning with defaults")
    names: queue.Queue[str] = queue.Queue()
    for name in zoo_models.MODELS:
        if name not in zoo_models.UNSEEN and any(fnmatch(name, glob) for glob in arguments.only):
            names.put(name)
    rows: dict[str, dict[str, Any]] = {}
    threads = [threading.Thread(target=ask, args=(names, rows)) for _ in range(arguments.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    print()
    print("| | works | median time of those that both cut | median parameters kept |")
    print("| --- | --- | --- | --- |")
    both = [row for row in rows.values() if row["hwprune"]["works"] and row["tp"]["works"]]
    for tool, label in (("hwprune", "hwprune (trace, analysis, cut)"), ("tp", "Torch-Pruning, defaults, no hints")):
        works = sum(row[tool]["works"] for row in rows.values())
        seconds = statistics.median(row[tool]["seconds"] for row in both) if both else float("nan")
        kept = statistics.median(row[tool]["kept"] for row in both) if both else float("nan")
        print(f"| {label} | {works} of {len(rows)} | {seconds:.2f} s | {kept:.2f} |")
    own = [row["hwprune"] for row in rows.values() if "nodes" in row["hwprune"]]
    if own:
        per = statistics.median(1000 * row["analyse"] / row["nodes"] for row in own)
        print(
            f"\nhwprune: analysis {per:.3f} s for each 1,000 nodes (median), largest {max(row['analyse'] for row in own):.2f} s; ",
            end="",
        )
        print(f"cut {1000 * statistics.median(row['cut'] for row in own):.0f} ms (median).")


if __name__ == "__main__":
    main()
