"""What searches deliver: the geometric mean of the fastest delivered speedup over all limits on the drop (make bench-search).

    python benchmarks/delivered.py [digits digits-vit resnet20 wide_cnn minilm] [--seeds 5] [--first-seed 0] [--time 4m | --trials 40]
        [--before FOLDER] [--max-drop 0.01] [--extra "--recover distill:2"] [--keep FOLDER]

G2 and G5 are the geometric means over all limits from 0 to 2 and to 5 points of the fastest point of front.csv whose drop *on the
test split* is within the limit (1 where there is none): what a user with some limit gets. Speedups are those measured again in
fresh processes. ``--before`` is the root of another version of hwprune; its searches alternate with those of this one, each with a
cache folder of its own that is empty before every search, so that what is kept between searches helps nobody.

Under each table: how often the test drop of a delivered point is above its ``told_high`` (which the true drop is below with
probability 0.9), and how often it would be if told_drop and told_high were right, because the test split has noise of its own.

``dominated`` counts proposals of which the search itself believed, when it made them, that something evaluated is at least as fast and
as good, with a probability above 0.95.

``after / before`` is the ratio of ln G5 over the seeds with a 95 % interval from resampling seeds. ``--kept FOLDER`` searches nothing and
tells all that of the runs that an earlier call kept.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import optuna
from common import ROOT, heading

DEMOS = ("digits", "digits-vit")
LIMITS = (0.005, 0.01, 0.02)
Points = list[tuple[float, float]]
"""(drop on the test split, speedup measured again)"""


def geometric_mean(points: Points, top: float) -> float:
    """Of the fastest speedup over all limits from 0 to ``top``."""
    limits = np.linspace(0.0, top, 2001)
    fastest = [max((speed for drop, speed in points if drop <= limit + 1e-12 and speed > 1), default=1.0) for limit in limits]
    return math.exp(float(np.mean(np.log(fastest))))


def front(run: Path) -> Points:
    """The delivered front; empty if nothing was."""
    if not (run / "front.csv").is_file():
        return []
    with (run / "front.csv").open(newline="") as handle:
        return [(float(row["drop"]), float(row["speedup"])) for row in csv.DictReader(handle) if row["trial"] != "dense"]


def told(run: Path) -> list[tuple[float, float]]:
    """Of each delivered point: 1 if its test drop is above what it was told to be below, and the probability of that."""
    found = []
    rows = list(csv.DictReader((run / "front.csv").read_text().splitlines())) if (run / "front.csv").is_file() else []
    for row in rows:
        if row["trial"] == "dense" or not row.get("told_high"):
            continue
        mean, high = float(row["told_drop"]), float(row["told_high"])
        error = (float(row["drop_ci_high"]) - float(row["drop_ci_low"])) / 2 / 1.96
        deviation = math.hypot((high - mean) / NormalDist().inv_cdf(0.9), error)
        found.append((float(float(row["drop"]) > high), 1 - NormalDist().cdf((high - mean) / max(deviation, 1e-12))))
    return found


def dominated(run: Path) -> tuple[int, int]:
    """Proposals that were believed to be dominated when they were made, and all of which this is known."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{run / 'study.db'}").trials
    chances = [(trial.system_attrs.get("hwprune:proposal") or {}).get("beaten") for trial in trials]
    known = [chance for chance in chances if chance is not None]
    return sum(chance > 0.95 for chance in known), len(known)


def search(root: Path, name: str, seed: int, words: Sequence[str], out: Path) -> tuple[Points, float]:
    """One search with an empty cache; its front and its wall time."""
    source = f"demo:{name}" if name in DEMOS else f"{ROOT / 'benchmarks' / 'workloads.py'}:{name}"
    cache = out.with_name(out.name + "-cache")
    shutil.rmtree(cache, ignore_errors=True)
    trained = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwprune"
    for path in trained.glob("*.safetensors"):  # trained demo networks, and the head of MiniLM
        (cache / "hwprune").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, cache / "hwprune" / path.name)
    for path in trained.glob("minilm-head-*.npz"):
        (cache / "hwprune").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, cache / "hwprune" / path.name)
    command = [sys.executable, "-c", "from hwprune.cli.main import main; main()", "search", source, "--seed", str(seed)]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)}
    if "--space" not in words:  # an editable install would give every version the spaces of one
        command += ["--space", str(root / "search_spaces" / "default.toml")]
    start = time.monotonic()
    done = subprocess.run(
        [*command, *words, "--out", str(out)], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    spent = time.monotonic() - start
    shutil.rmtree(cache, ignore_errors=True)
    out.with_name(out.name + ".log").write_text(done.stdout + done.stderr)
    if done.returncode:
        print(f"{name} seed {seed} of {root}: exit {done.returncode}: {done.stderr.strip()[-400:]}", file=sys.stderr)
    return front(out), spent


def row(label: str, seed: int, points: Points, spent: float) -> str:
    at = [max((s for d, s in points if d <= limit + 1e-12), default=1.0) for limit in LIMITS]
    cells = " | ".join(f"{value:.2f}" for value in (geometric_mean(points, 0.02), geometric_mean(points, 0.05), *at))
    return f"| {label} | {seed} | {cells} | {len(points)} | {'—' if math.isnan(spent) else f'{spent:.0f}'} |"


def paired_ratio(after: Sequence[float], before: Sequence[float]) -> str:
    """Ratio of the means with an interval over resampled seeds."""
    a, b = np.array(after), np.array(before)
    draw = np.random.default_rng(0)
    picks = draw.integers(0, len(a), (4000, len(a)))
    ratios = a[picks].mean(axis=1) / np.maximum(b[picks].mean(axis=1), 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return f"{a.mean() / max(b.mean(), 1e-9):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["digits", "digits-vit", "resnet20", "wide_cnn", "minilm"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--time", help="instead of a number of trials")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--max-drop")
    parser.add_argument("--extra", default="", help="more words for every search")
    parser.add_argument("--keep", type=Path, help="a folder where the run directories stay")
    parser.add_argument("--kept", type=Path, help="the folder of an earlier --keep: nothing is searched")
    options = parser.parse_args()
    heading("What searches deliver")
    words = ["--trials", "0", "--time", options.time] if options.time else ["--trials", str(options.trials)]
    words += ["--max-drop", options.max_drop] if options.max_drop else []
    words += shlex.split(options.extra)
    arms = {"now": ROOT, **({} if options.before is None else {"before": options.before.resolve()})}
    print(f"Runs of {options.kept}.\n" if options.kept else f"Search: {' '.join(words)}; the cache is empty before each.\n")
    with tempfile.TemporaryDirectory() as folder:
        runs = options.kept or options.keep or Path(folder)
        for name in options.names:
            print(f"## {name}\n\n| version | seed | G2 | G5 | at 0.5 points | at 1 | at 2 | points | s |")
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
            logs: dict[str, list[float]] = {arm: [] for arm in arms}
            above: list[tuple[float, float]] = []
            proposals: list[tuple[int, int]] = []
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                for arm, root in list(arms.items())[:: 1 if seed % 2 == 0 else -1]:
                    out = (runs / f"{name}-{seed}-{arm}").resolve()
                    if options.kept and not out.is_dir():
                        continue
                    points, spent = (front(out), math.nan) if options.kept else search(root, name, seed, words, out)
                    above += told(out)
                    proposals += [dominated(out)] if (out / "study.db").is_file() else []
                    logs[arm].append(math.log(geometric_mean(points, 0.05)))
                    print(row(arm, seed, points, spent), flush=True)
            if above:
                times, expected = np.array(above).sum(axis=0)
                print(f"\nTest drop above told_high: {times:.0f} of {len(above)} points, expected {expected:.1f}", flush=True)
            if proposals:
                most, count = np.array(proposals).sum(axis=0)
                print(f"\nProposals dominated when they were made: {most} of {count}", flush=True)
            if all(logs.get(arm) for arm in ("now", "before")) and len(logs["now"]) == len(logs["before"]):
                print(f"\nln G5, after / before: {paired_ratio(logs['now'], logs['before'])}\n", flush=True)
            print()


if __name__ == "__main__":
    main()
