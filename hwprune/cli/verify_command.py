"""hwprune verify."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hwprune.cli import arguments as args

EPILOG = """examples:
  hwprune verify deploy
  hwprune verify deploy --min-speedup 1.5 --max-drop 1%      in a build: exit code 1 unless both hold on this machine
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="an export, a run directory, or one candidate of a run")
    parser.add_argument("--workload", metavar="W", help="where the metric comes from, if it is a function of yours")
    parser.add_argument("--min-speedup", type=args.number, metavar="1.5", help="fail below this speedup, measured here")
    parser.add_argument("--max-drop", type=args.drop, metavar="0.01", help="fail above this drop of the metric; 1%% is 0.01")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.deploy.checks import Gate
    from hwprune.deploy.verify import verify
    from hwprune.workload import loading

    metric = loading.load(options.workload).scoring if options.workload else None
    results = verify(Path(options.folder), metric, gate=Gate(options.min_speedup, options.max_drop))
    if options.json:
        print(json.dumps([result.to_json() for result in results], indent=1))
    else:
        words = {True: "ok", False: "FAILED", None: "-"}
        for result in results:
            print(f"{result.name}: {'passed' if result.passed else 'FAILED'}")
            for check in result.checks:
                print(f"  {words[check.passed]:6}  {check.name:9}  {check.text}")
        if any(check.name == "integrity" and check.passed is False for result in results for check in result.checks):
            print("Files are not those that were exported: copy the folder again, or export it again.")
    return 0 if all(result.passed for result in results) else 1
