"""Stopping early: cascades and early exits of finished runs, beside the best single model within the same limit.

    hwprune search benchmarks/workloads.py:wide_cnn --trials 30 --seed 0 --out runs/wide
    python benchmarks/cascades.py runs/wide runs/minilm [--max-drop 0.01] [--target cpu]

Every line is measured in the same processes on the same 300 test inputs: mean, 95th percentile and slowest input.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import heading

from hwprune.common import formatting
from hwprune.deploy.cascade_choice import Wish
from hwprune.deploy.cascading import cascade
from hwprune.errors import HwpruneError
from hwprune.records.record import read_record
from hwprune.report.cascade_page import HEADER, named, rows, verdict
from hwprune.workload import loading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--max-drop", type=float, default=0.01)
    options = parser.parse_args()
    heading("Stopping early")
    for run in options.runs:
        record = read_record(run)
        print(
            f"\n### {record.data['workload']['name']} on {record.target_label}, at most {100 * options.max_drop:g} points below dense"
        )
        workload = loading.load(record.data["workload"]["source"])
        for exits in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    result = cascade(run, Path(folder), Wish(options.max_drop), workload=workload if exits else None)
                except HwpruneError as error:
                    print(f"\n{'early exit' if exits else 'two models'}: {error}", flush=True)
                    continue
            plan, share = result.plan, result.exits
            print(
                f"\n{named(plan.first)}, then {named(plan.second)} where less than {formatting.percent(plan.threshold)} sure: "
                f"{formatting.percent(share.value)} [{formatting.percent(share.ci_low)}, {formatting.percent(share.ci_high)}] end early\n"
            )
            print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
            for row in rows(result):
                print(f"| {' | '.join(row)} |")
            print(f"\n{verdict(result)}", flush=True)


if __name__ == "__main__":
    main()
