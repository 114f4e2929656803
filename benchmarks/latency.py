"""How far latencies can be trusted on this machine, and how well they are predicted.

    python benchmarks/latency.py [--only aa,slowdown,fresh,cost,model,stairs,runtimes] [--workloads resnet20,wide_cnn,minilm]

aa        a model against itself, inside one session and between sessions, while another process loads a core in bursts
slowdown  an artificial slowdown of 2 %: how often it is detected, paired and unpaired
fresh     speedups of random candidates, measured twice in fresh processes
cost      seconds of one search measurement
model     the latency model: held-out candidates after the table and 30 whole-model measurements, MACs beside it
stairs    the staircase of the probe against brute force, width by width
runtimes  ONNX Runtime and OpenVINO on the same files
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import workloads
from common import heading

from hwprune import runtimes
from hwprune.latency import fresh, paired
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import LatencyTable, save_inputs
from hwprune.latency.paired import Settings
from hwprune.latency.predictor import LatencyModel
from hwprune.latency.segments import Segment
from hwprune.latency.source import Measured
from hwprune.probe.cut_segments import CutSegments, random_counts, staircase_of
from hwprune.probe.probing import WINDOW, WINDOW_ROUNDS
from hwprune.probe.staircase import detected_multiple
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets

PARTS = ("aa", "slowdown", "fresh", "cost", "model", "stairs", "runtimes")


class Case:
    """A workload as files: dense, random cuts, example inputs."""

    def __init__(self, name: str, folder: Path, cuts: int) -> None:
        self.name = name
        self.pruner = Pruner(getattr(workloads, name)())
        self.pieces = CutSegments(self.pruner)
        self.shapes = self.pieces.shapes
        self.example = folder / f"{name}.npz"
        save_inputs(self.example, [x.numpy() for x in self.pruner.workload.example_inputs])
        self.dense = folder / f"{name}.onnx"
        onnx.save(self.pieces.cut({}), str(self.dense))
        self.segments = self.pieces.segments(onnx.load(str(self.dense)))
        self.cuts: list[tuple[Path, list[Segment]]] = []
        multiple = targets.load("cpu").multiple("avx512")
        for seed in range(cuts):
            model = self.pieces.cut(random_counts(self.pieces.axes(), self.pieces, multiple, seed))
            path = folder / f"{name}-{seed}.onnx"
            onnx.save(model, str(path))
            self.cuts.append((path, self.pieces.segments(model)))

    def bench(self, target: str = "cpu") -> Bench:
        return Bench(targets.load(target), shapes=self.shapes)


def _hog(seed: int) -> None:
    draw = random.Random(seed)
    while True:
        end = time.monotonic() + draw.uniform(0.05, 1.0)
        while time.monotonic() < end:
            sum(range(1000))
        time.sleep(draw.uniform(0.05, 1.0))


@contextlib.contextmanager
def bursts() -> Iterator[None]:
    """Another process that loads a core for up to a second, then rests for up to a second."""
    process = multiprocessing.get_context("spawn").Process(target=_hog, args=(0,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def spread(values: list[float]) -> str:
    errors = [abs(v - 1) for v in values]
    return f"median error {100 * statistics.median(errors):.2f} %, largest {100 * max(errors):.2f} %"


def aa(case: Case, runs: int) -> None:
    with bursts(), case.bench() as bench:
        bench.load("dense", case.dense, keep=True)
        source = Measured(bench, case.example, Settings(clock=bench.clock))
        source.dense(case.dense)
        inside = [bench.pair("dense", "dense", case.example, Settings(clock=bench.clock)) for _ in range(runs)]
        between = []
        for _ in range(runs):
            bench.load("candidate", case.dense)
            between.append(source.candidate(case.dense))
    for text, results in (("one session against itself", inside), ("between sessions", between)):
        held = sum(r.speedup.ci_low <= 1 <= r.speedup.ci_high for r in results)
        values = [r.ratio for r in results]
        print(f"A/A, {text}: {spread(values)}, sd {100 * statistics.stdev(map(math.log, values)):.2f} %; "
              f"intervals that hold 1: {held} of {runs} ({100 * held / runs:.1f} %)")  # fmt: skip
        print(f"   the same in wall time: {spread([r.speedup.conditions['wall_speedup'] for r in results])}")
    print(f"   deviation between sessions that the gate found: {100 * source.settings.session_sd:.2f} %")
    unpaired = [a.latency.value / b.latency.value for a, b in zip(between[::2], between[1::2], strict=False)]
    print(f"unpaired, one measurement's median over the next one's: {spread(unpaired)}")
    walls = [
        a.latency.conditions["wall_s"] / b.latency.conditions["wall_s"] for a, b in zip(between[::2], between[1::2], strict=False)
    ]
    print(f"   the same in wall time: {spread(walls)}")
    print(f"contended quads: {100 * statistics.mean(r['contended'] for r in inside + between):.0f} %")


def slowdown(case: Case, runs: int, by: float = 0.02) -> None:
    inputs = [x.numpy() for x in case.pruner.workload.example_inputs]
    runtime = runtimes.get("onnxruntime-cpu")
    call = runtime.load(case.dense, runtimes.Settings()).bind(inputs)
    plain = [timed(call, 20) for _ in range(50)]
    wanted = by * statistics.median(plain) * 1e9
    extra = wanted

    def slower() -> None:
        call()
        end = time.thread_time_ns() + extra
        while time.thread_time_ns() < end:
            pass

    for _ in range(6):  # reading the clock takes time too: aim at the whole
        pairs = [(timed(slower, 20), timed(call, 20)) for _ in range(100)]
        true = statistics.median(a / b for a, b in pairs)
        extra += wanted * (1 + by - true) / by
    settings = Settings(half_width=0.004, limit_s=4.0)
    found, single, single_false = 0, 0, 0
    seconds = []
    with bursts():
        for _ in range(runs):
            start = time.monotonic()
            result = paired.measure(slower, call, settings)
            seconds.append(time.monotonic() - start)
            found += result.speedup.ci_high < 1

            single += unpaired_says(slower, call, "slower")
            single_false += unpaired_says(call, call, "different")
    print(
        f"a slowdown of {100 * (true - 1):.1f} %: detected in {found} of {runs} runs, {statistics.median(seconds):.2f} s a run (at most {max(seconds):.1f})"
    )
    print(f"unpaired (200 runs of one, then of the other, wall time, intervals of the medians that don't overlap): detected in {single} of {runs}, "
          f"and a difference that is not there in {single_false} of {runs}")  # fmt: skip


def timed(call: Callable[[], object], runs: int) -> float:
    start = time.thread_time_ns()
    for _ in range(runs):
        call()
    return (time.thread_time_ns() - start) / runs * 1e-9


def unpaired_says(candidate: Callable[[], object], dense: Callable[[], object], what: str) -> bool:
    """The usual way: time one, then the other, compare the medians with their intervals."""
    from hwprune.latency.interval import median_interval

    found = []
    for call in (candidate, dense):
        times = []
        for _ in range(200):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found.append(median_interval(times, 0.05))
    slower = found[0][1] > found[1][2]
    return slower if what == "slower" else slower or found[0][2] < found[1][1]


def fresh_processes(case: Case) -> None:
    models = {str(number): path for number, (path, _) in enumerate(case.cuts[:20])}
    first = fresh.remeasure(models, case.dense, case.example, case.bench)
    second = fresh.remeasure(models, case.dense, case.example, case.bench)
    ratios = [second[key][1].value / first[key][1].value for key in models]
    overlap = sum(first[k][1].ci_low <= second[k][1].ci_high and second[k][1].ci_low <= first[k][1].ci_high for k in models)
    print(f"speedups of {len(models)} random candidates, each measured twice in {fresh.PROCESSES} fresh processes: {spread(ratios)}; "
          f"intervals that overlap: {overlap}")  # fmt: skip
    with case.bench() as bench:
        bench.load("dense", case.dense, keep=True)
        source = Measured(bench, case.example, Settings(clock=bench.clock))
        source.dense(case.dense)
        ratios, inside = [], 0
        for key, path in models.items():
            bench.load("candidate", path)
            one = source.candidate(path)
            ratios.append(one.ratio / second[key][1].value)
            inside += one.speedup.ci_low <= second[key][1].value <= one.speedup.ci_high
    print(
        f"a single search measurement against fresh processes: {spread(ratios)}; its interval holds their value: {inside} of {len(models)}"
    )


def cost(case: Case) -> None:
    with case.bench() as bench:
        bench.load("dense", case.dense, keep=True)
        source = Measured(bench, case.example, Settings(clock=bench.clock))
        source.dense(case.dense)
        seconds = []
        for path, _ in case.cuts[:20]:
            start = time.monotonic()
            bench.load("candidate", path)
            source.candidate(path)
            seconds.append(time.monotonic() - start)
    print(f"{case.name}: one search measurement {statistics.median(seconds):.2f} s (load included; largest {max(seconds):.2f} s)")


def model(case: Case) -> None:
    from scipy.stats import kendalltau

    with case.bench() as bench:
        bench.load("dense", case.dense, keep=True)
        source = Measured(bench, case.example, Settings(clock=bench.clock))
        dense_s = source.dense(case.dense).dense_latency_s
        measured = []
        for path, _ in case.cuts:
            bench.load("candidate", path)
            result = source.candidate(path)
            measured.append(
                (dense_s / result.ratio, dense_s * (result.speedup.ci_high - result.speedup.ci_low) / 2 / result.ratio**2)
            )
        table = LatencyTable(bench.identity())
        start = time.monotonic()
        count = table.fill(bench, [*case.segments, *[s for _, segments in case.cuts[:30] for s in segments]])
        spent = time.monotonic() - start
        for number, ((_, segments), (seconds, half)) in enumerate(zip(case.cuts[:30], measured[:30], strict=True)):
            table.observe("n", str(number), segments, seconds, half)
        true = np.array([seconds for seconds, _ in measured[30:]])
        tests = [segments for _, segments in case.cuts[30:]]
        noise = statistics.median((r[1] / 1.96) / r[0] for r in measured[30:])

        def report(text: str, found: list[float], more: str = "") -> None:
            errors = np.abs(np.array(found) / true - 1)
            near = errors[true > dense_s / 3]
            print(f"{case.name}, {text}: median error {100 * np.median(errors):.2f} %, largest {100 * errors.max():.1f} % "
                  f"(the {len(near)} up to 3x faster: {100 * np.median(near):.2f} %, {100 * near.max():.1f} %), "
                  f"Kendall {kendalltau(found, true)[0]:.3f}{more}")  # fmt: skip

        print(f"{case.name}: {count} segments measured in {spent:.1f} s; the measurements' own deviation is {100 * noise:.2f} %")
        predictions = [LatencyModel(table, "n").predict(s) for s in tests]
        held = np.mean([abs(p.seconds - t) < 1.96 * p.sd for p, t in zip(predictions, true, strict=True)])
        known = np.mean([p.known for p in predictions])
        regressor = LatencyModel(table, "n").regressor("Conv") or LatencyModel(table, "n").regressor("MatMul")
        error = f", the regressor's own {100 * regressor.error:.1f} %" if regressor else ""
        report("as it stands (unknown segments regressed)", [p.seconds for p in predictions],
               f"; 95 % intervals that hold: {100 * held:.0f} %; {100 * known:.0f} % of the time from measured segments{error}")  # fmt: skip
        more = table.fill(bench, [s for segments in tests for s in segments])
        report(f"with all segments measured ({more} more)", [LatencyModel(table, "n").predict(s).seconds for s in tests])
        report("the bare sum of the table", [LatencyModel(table, "none").predict(s).seconds for s in tests])
        macs = np.array([[sum(s.macs for s in segments), 1.0] for _, segments in case.cuts])
        line = np.linalg.lstsq(macs[:30], np.array([m[0] for m in measured[:30]]), rcond=None)[0]
        report("multiply-accumulates, fitted to the same 30", list(macs[30:] @ line))


def stairs(case: Case) -> None:
    """The same axis by the probe's micro-graphs, and by brute force: the whole model at every width, paired."""
    units = sorted(
        (u for u in case.pieces.axes() if u.size >= 32 and u.role in ("channel", "neuron")), key=lambda u: abs(u.size - 64)
    )
    unit = units[0]
    counts = list(range(max(1, unit.size - WINDOW + 1), unit.size + 1))
    with tempfile.TemporaryDirectory() as name, case.bench() as bench:
        pieces = {k: case.pieces.segments(case.pieces.cut({unit.name: k} if k < unit.size else {})) for k in counts}
        table = LatencyTable(bench.identity())
        table.fill(bench, [s for segments in pieces.values() for s in segments], rounds=WINDOW_ROUNDS)
        found = LatencyModel(table, "")
        fast = staircase_of(pieces, found)
        bench.load("dense", case.dense, keep=True)
        dense_s, slow = 0.0, {}
        for k in counts:
            path = Path(name) / "m.onnx"
            onnx.save(case.pieces.cut({unit.name: k} if k < unit.size else {}), str(path))
            bench.load("candidate", path)
            result = bench.pair("candidate", "dense", case.example, Settings(clock=bench.clock, half_width=0.003, limit_s=1.5))
            dense_s = dense_s or result.dense_latency_s
            slow[k] = dense_s / result.ratio
    base = slow[unit.size] - fast[unit.size]  # what the rest of the network costs
    brute = {k: max(v - base, 1e-8) for k, v in slow.items()}
    print(
        f"{case.name}, {unit.name} ({unit.size}): multiple by the probe {detected_multiple(fast)}, by brute force {detected_multiple(brute)}"
    )
    changes = np.array([[fast[k] - fast[unit.size], slow[k] - slow[unit.size]] for k in counts[:-1]])
    slope = float((changes[:, 0] @ changes[:, 1]) / (changes[:, 0] @ changes[:, 0]))
    print(f"   correlation over {len(counts)} widths {np.corrcoef(list(fast.values()), list(slow.values()))[0, 1]:.3f}; "
          f"a microsecond of the probe is {slope:.2f} of the fused network")  # fmt: skip
    show = counts[:: max(1, len(counts) // 12)]
    print("   width:      " + " ".join(f"{k:5d}" for k in show))
    print("   probe, us:  " + " ".join(f"{1e6 * fast[k]:5.1f}" for k in show))
    print("   brute, us:  " + " ".join(f"{1e6 * brute[k]:5.1f}" for k in show))


def side_by_side(case: Case) -> None:
    from hwprune.records import target as module

    cpu = targets.load("cpu-openvino")
    half = module.Target.from_json({**cpu.to_json(), "precision": "bf16"})
    order = [("ONNX Runtime", targets.load("cpu")), ("OpenVINO", cpu), ("OpenVINO, bf16", half)]
    pruned = case.cuts[0][0]
    for text, target in order:
        if reason := runtimes.missing(target.runtime):
            print(f"{case.name}, {text}: {reason}")
            continue
        with Bench(target, shapes=case.shapes) as bench:
            bench.load("dense", case.dense, keep=True)
            bench.load("candidate", pruned)
            settings = Settings(clock=bench.clock, half_width=0.005, limit_s=3.0)
            result = bench.pair("candidate", "dense", case.example, settings)
        print(f"{case.name}, {text} ({runtimes.get(target.runtime).version()}): dense {1e3 * result.dense_latency_s:.3f} ms; a random cut "
              f"{result.ratio:.2f}x [{result.speedup.ci_low:.2f}, {result.speedup.ci_high:.2f}]")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--workloads", default="resnet20,wide_cnn")
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    parts, names = options.only.split(","), options.workloads.split(",")
    heading("latency: measurement and prediction")
    with tempfile.TemporaryDirectory() as name:
        cases = [Case(one, Path(name), 60 if "model" in parts else 20) for one in names]
        first = cases[0]
        if "aa" in parts:
            aa(first, options.runs)
        if "slowdown" in parts:
            slowdown(first, max(20, options.runs // 2))
        if "fresh" in parts:
            fresh_processes(first)
        for case in cases:
            for part, run in (("cost", cost), ("model", model), ("stairs", stairs), ("runtimes", side_by_side)):
                if part in parts:
                    run(case)


if __name__ == "__main__":
    main()
