"""Cut every model of the zoo and compare with masking.

python benchmarks/zoo.py [--only GLOB ...] [--unseen] [--no-onnx] [--out docs/zoo.md] [--jobs 2]

For each model: traced, axes found; every exact axis cut at once by random halves (twice), the outputs compared with those of the
masked model; everything that may be cut, statistical axes too, cut by half and run; parameters counted against the
prediction; the ONNX file made from the dense file compared with the cut module.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
import warnings
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

from hwprune.structure.torch import capture
from hwprune.structure.torch.free_sizes import has_free_batch

TIMEOUT = 600
SEED = 0
VACUOUS = 1e-3
"""Relative change of the outputs that masking half of every exact axis must make at least, or the comparison says nothing."""


# -- one model, in a worker ------------------------------------------------------------------


def randomise(model: Any) -> None:
    """Weights, statistics and buffers that hide nothing: no zero gains, no unit variances."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
        with torch.no_grad():
            if "running_var" in name:
                tensor.copy_(noise + 0.5)
            elif "running_mean" in name:
                tensor.copy_(0.2 * noise - 0.1)
            elif isinstance(tensor, torch.nn.Parameter) and tensor.ndim <= 1:
                tensor.add_(0.4 * noise - 0.2)
            elif isinstance(tensor, torch.nn.Parameter) and float(tensor.abs().max()) < 1e-3:
                tensor.add_(0.2 * noise - 0.1)  # gains that start at zero (layer scale)


def halves(axes: Any, seed: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    keeps = {}
    for axis in axes:
        order = torch.randperm(axis.size, generator=generator)
        keeps[axis.name] = torch.zeros(axis.size, dtype=torch.bool)
        keeps[axis.name][order[: max(1, axis.size // 2)]] = True
    return keeps


def compare(a: Any, b: Any, inputs: Any) -> float:
    import torch

    with torch.no_grad():
        ours, theirs = (torch.utils._pytree.tree_leaves(m(*inputs)) for m in (a, b))
    worst = 0.0
    for x, y in zip(ours, theirs, strict=True):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            finite = torch.isfinite(y)
            if not bool((torch.isfinite(x) == finite).all()) or not bool(finite.any()):
                return float("nan")
            scale = float(y[finite].abs().max())
            worst = max(worst, float((x - y)[finite].abs().max()) / max(scale, 1e-30))
    return worst


def difference(a: Any, b: Any, inputs: Any) -> tuple[float, str]:
    """Largest relative difference of any output; in float64 where float32 rounding leaves a doubt."""
    import torch

    found = compare(a, b, inputs)
    if found <= 1e-5:
        return found, "float32"
    double = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:
        return compare(a.double(), b.double(), double), "float64"
    except (RuntimeError, TypeError):
        return found, "float32"
    finally:
        a.float(), b.float()
        torch.set_default_dtype(torch.float32)


def examine(name: str, onnx: bool) -> dict[str, Any]:
    import torch
    import zoo_models

    from hwprune.structure.torch import analyse

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model, inputs = zoo_models.MODELS[name]()
    model.eval()
    randomise(model)
    row: dict[str, Any] = {"model": name, "stage": "trace"}
    start = time.perf_counter()
    captured = capture.capture(model, inputs)
    row["trace_s"] = time.perf_counter() - start
    row["stage"] = "analyse"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        graph = analyse.analyse(captured)
        times.append(time.perf_counter() - start)
    row["analyse_s"] = min(times)
    row["nodes"] = len(captured.graph.nodes)
    free = [axis for axis in graph.axes if axis.frozen is None]
    exact = [axis for axis in free if axis.exact]
    row["axes"], row["free"], row["exact"] = len(graph.axes), len(free), len(exact)
    row["roles"] = dict(collections.Counter(axis.role for axis in free))
    row["frozen"] = dict(collections.Counter(a.frozen.split(": ")[-1] for a in graph.axes if a.frozen))
    row["branches"] = len(getattr(graph, "branches", ()))
    tensors = tuple(x.clone() for x in inputs)
    dense = sum(p.numel() for p in model.parameters())

    row["stage"] = "dense"
    with torch.no_grad():
        row["dense_error"] = compare(graph.module, model, tensors)
    row["stage"] = "cut"
    worst, start = 0.0, time.perf_counter()
    for seed in (1, 2):
        keeps = halves(exact, seed)
        start = time.perf_counter()
        cut = graph.cut(keeps)
        row["cut_s"] = time.perf_counter() - start
        error, kind = difference(cut, graph.mask(keeps), tensors)
        if not error <= worst:
            worst = error
            row["precision"] = kind
    row["error"] = worst
    row["effect"] = (
        compare(graph.mask(keeps), graph.module, tensors) if exact else None
    )  # a test that nothing could fail shows here
    if not worst <= 1e-5:
        row["culprits"] = []
        for axis in exact:
            keeps = halves([axis], 1)
            error, _ = difference(graph.cut(keeps), graph.mask(keeps), tensors)
            if not error <= 1e-5:
                row["culprits"].append([axis.name, error])
            if len(row["culprits"]) >= 5:
                break
    row["stage"] = "everything"
    keeps = halves(free, 3)
    counts = {n: int(k.sum()) for n, k in keeps.items()}
    small = graph.cut(keeps)
    with torch.no_grad():
        small(*tensors)
    row["params"], row["params_cut"] = dense, sum(p.numel() for p in small.parameters())
    row["predicted"] = graph.parameter_count(counts)
    row["stage"] = "train"
    out = [
        x
        for x in torch.utils._pytree.tree_leaves(
            small.train()(*((torch.cat([x, x]) for x in tensors) if has_free_batch(captured) else tensors))
        )
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    ]
    if any(x.requires_grad for x in out):
        sum(x.square().mean() for x in out).backward()
        row["gradients"] = sum(p.grad is not None for p in small.parameters()) / max(1, sum(1 for _ in small.parameters()))
    if onnx:
        row["stage"] = "onnx"
        import zoo_onnx

        row |= zoo_onnx.examine(graph, small.eval(), keeps, inputs)
    row["stage"] = "done"
    return row


def work(onnx: bool) -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the models print
    for line in sys.stdin:
        name = line.strip()
        try:
            row = examine(name, onnx)
        except Exception as error:  # noqa: BLE001 - a model that fails is a row of the table
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = (str(error).strip().splitlines() or [""])[0][:300]
            row = {"model": name, "failure": f"{type(error).__name__}: {text} ({Path(last.filename).name}:{last.lineno})"}
            traceback.print_exc()
        print(json.dumps(row), file=answers, flush=True)


# -- all of them -----------------------------------------------------------------------------


def start_worker(arguments: argparse.Namespace) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "--worker", *(["--no-onnx"] if arguments.no_onnx else [])]
    log = open(arguments.log, "a")  # noqa: SIM115, PTH123 - lives as long as the worker
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)


def serve(names: queue.Queue[str], rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    worker = start_worker(arguments)
    while True:
        try:
            name = names.get_nowait()
        except queue.Empty:
            worker.kill()
            return
        timer = threading.Timer(TIMEOUT, worker.kill)
        timer.start()
        assert worker.stdin and worker.stdout
        worker.stdin.write(name + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
        timer.cancel()
        if line:
            row = json.loads(line)
        else:
            row = {"model": name, "failure": f"the worker died or took more than {TIMEOUT} s"}
            worker = start_worker(arguments)
        rows.append(row)
        print(summary(row), flush=True)


def verdict(row: dict[str, Any]) -> str:
    if "failure" in row:
        return "FAILED"
    if not row["error"] <= 1e-5 or row["predicted"] != row["params_cut"] or not row.get("onnx_error", 0) <= 1e-5:
        return "WRONG"
    if row.get("effect") is not None and not row["effect"] > VACUOUS:
        return "VACUOUS"
    return "cut" if row["params_cut"] < 0.98 * row["params"] else "left alone"


def summary(row: dict[str, Any]) -> str:
    if "failure" in row:
        return f"{row['model']:45s} FAILED {row['failure']}"
    text = f"{row['model']:45s} {verdict(row):10s} {row['nodes']:5d} nodes, {row['free']:3d}/{row['axes']:3d} free, "
    text += f"{row['exact']:3d} exact, err {row['error']:.1e}, params {row['params_cut'] / row['params']:.2f}, "
    text += f"analyse {row['analyse_s']:.2f}, cut {row['cut_s']:.2f}"
    if "onnx_error" in row:
        text += f", onnx {row['onnx_route']} {row['onnx_error']:.1e} {row['onnx_s']:.2f} s"
    if "culprits" in row:
        text += f" {row['culprits']}"
    return text


def table(rows: list[dict[str, Any]]) -> str:
    """The zoo as Markdown."""
    import contextlib
    import io

    from common import heading

    head = io.StringIO()
    with contextlib.redirect_stdout(head):
        heading("The zoo: every model cut, by `make zoo`")
    done = [row for row in rows if "failure" not in row]
    wrong = [row["model"] for row in rows if verdict(row) in ("WRONG", "FAILED", "VACUOUS")]
    reduced = sum(verdict(row) == "cut" for row in rows)
    routed = [row for row in done if row.get("onnx_route") == "template"]
    lines = [
        head.getvalue().strip(),
        "",
        f"{len(rows)} models with random weights, seed {SEED}. Every exact axis cut at once by random halves, twice, against the masked "
        "model; then everything that may be cut by half, the parameters counted against the prediction, a training step; then its "
        "ONNX file made from the dense one, run by ONNX Runtime against the cut module.",
        "",
        f"* Correct: {len(rows) - len(wrong)} of {len(rows)}" + (f" (not: {', '.join(wrong)})." if wrong else "."),
        f"* With fewer parameters: {reduced} of {len(rows)}.",
        f"* ONNX file cut from the dense one: {len(routed)} of {len(rows)}, in {1000 * median(r['onnx_s'] for r in routed):.0f} ms (median), "
        f"largest difference {max((r['onnx_error'] for r in routed), default=0):.1e}."
        if routed
        else "",
        f"* Analysis without `torch.export`: median {1000 * median(r['analyse_s'] for r in done):.0f} ms, largest "
        f"{max(r['analyse_s'] for r in done):.2f} s; {1e6 * median(r['analyse_s'] / r['nodes'] for r in done):.0f} ms for each 1,000 nodes.",
        "",
        "| model | nodes | axes: free / all | exact | branches | error | parameters kept | analysis | cut | ONNX |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "failure" in row:
            lines.append(f"| {row['model']} | | | | | {row['failure'][:120]} | | | | |")
            continue
        route = (
            f"{row['onnx_error']:.0e}, {1000 * row['onnx_s']:.0f} ms" if "onnx_error" in row else row.get("onnx_route", "")[:80]
        )
        lines.append(
            f"| {row['model']} | {row['nodes']} | {row['free']} / {row['axes']} | {row['exact']} | {row['branches']} | {row['error']:.0e} | "
            f"{row['params_cut'] / row['params']:.2f} | {1000 * row['analyse_s']:.0f} ms | {1000 * row['cut_s']:.0f} ms | {route} |"
        )
    frozen: collections.Counter[str] = collections.Counter(reason for row in done for reason in row["frozen"])
    lines += ["", "Why axes were left alone, and in how many models:", ""]
    lines += [f"* {reason}: {count}" for reason, count in frozen.most_common()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    parser.add_argument("--log", default=os.devnull)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(not arguments.no_onnx)
    import zoo_models

    chosen = [
        n
        for n in zoo_models.MODELS
        if any(fnmatch(n, glob) for glob in arguments.only) and (n in zoo_models.UNSEEN) == arguments.unseen
    ]
    names: queue.Queue[str] = queue.Queue()
    for name in chosen:
        names.put(name)
    rows: list[dict[str, Any]] = []
    threads = [threading.Thread(target=serve, args=(names, rows, arguments)) for _ in range(arguments.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows.sort(key=lambda row: chosen.index(row["model"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    print(dict(collections.Counter(verdict(row) for row in rows)))
    if arguments.out:
        arguments.out.write_text(table(rows))


if __name__ == "__main__":
    main()
