"""hwprune inspect."""

from __future__ import annotations

import argparse
import json

from hwprune.cli import arguments as args


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_workload(parser)
    parser.add_argument("--all", action="store_true", help="one line for each axis and branch, also where blocks repeat")
    parser.add_argument("--members", action="store_true", help="list every parameter that an axis runs through")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.pruning.inspection import describe, text
    from hwprune.pruning.pruner import Pruner
    from hwprune.workload import loading

    workload = loading.load(args.source(options), structure_only=True)
    data = describe(Pruner(workload))
    if options.json:
        print(json.dumps({"workload": workload.name, **data}, indent=1))
    else:
        print(text(workload.name, data, members=options.members, every=options.all))
    return 0
