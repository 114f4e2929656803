"""hwprune ticket."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hwprune.cli import arguments as args

EPILOG = """Train, remove the smallest weights, set the rest back to an early step, train again; and compare the sparse network
with random ones that have as many weights in each layer.

examples:
  hwprune ticket demo:digits-vit --rounds 10 --rewind 0.01 --out ticket
  hwprune ticket model.py:workload --rounds 6 --share 0.4 --epochs 20 --rate 0.001 --transfer model.py:other
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_workload(parser)
    parser.add_argument("--rounds", type=args.whole, metavar="N", default=10, help="rounds of pruning (default: 10)")
    parser.add_argument(
        "--share", type=args.number, metavar="0.2", default=0.2, help="of the weights left, removed in each round (default: 0.2)"
    )
    parser.add_argument(
        "--rewind", type=args.number, metavar="0.01", default=0.01,
        help="part of the training to which weights go back; 0: their initialisation (default: 0.01)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=args.whole, metavar="N", default=3, help="repetitions, at least 2 (default: 3)")
    parser.add_argument("--epochs", type=args.number, metavar="E", default=6.0, help="of each training (default: 6)")
    parser.add_argument("--rate", type=args.number, metavar="0.004", default=4e-3, help="highest learning rate (default: 0.004)")
    parser.add_argument("--transfer", metavar="WORKLOAD2", help="try the tickets on this workload too")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--resume", action="store_true", help="go on in --out after a kill or Ctrl-C, with the same options")
    parser.add_argument("--out", metavar="DIR", help="write ticket.csv, ticket.json, ticket.png and ticket.safetensors")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.cli.progress_bar import make_progress
    from hwprune.errors import UsageError
    from hwprune.recovery.plan import Plan
    from hwprune.recovery.tickets import ticket_files
    from hwprune.recovery.tickets.course import FILE
    from hwprune.recovery.tickets.drawing import draw
    from hwprune.recovery.tickets.ticket_plan import TicketPlan
    from hwprune.workload import loading

    out = _folder(options)
    training = Plan("finetune", options.epochs, rate=options.rate)
    plan = TicketPlan(options.rounds, options.share, options.rewind, options.seeds, training)
    workload = loading.load(args.source(options))
    other = loading.load(options.transfer) if options.transfer else None
    for trainee in (workload, other):
        if trainee is not None and trainee.train is None:
            raise UsageError(f"{trainee.name} has no train data: a ticket is found by training, hwprune.Workload(train=loader)")
    progress = make_progress(quiet=options.quiet or options.json)

    def step(done: int, total: int, text: str) -> None:
        progress.stage(f"[{done + 1}/{total}] {text}")

    try:
        tickets = draw(workload, plan, other, step, out)
    except KeyboardInterrupt:
        progress.close()
        if out is not None and (out / FILE).exists():
            print("\nhwprune: interrupted; the same command with --resume goes on after the last whole round", file=sys.stderr)
            return 130
        raise
    finally:
        progress.close()
    name, metric, second = workload.name, workload.scoring.name, other.name if other is not None else ""
    files = ticket_files.write(tickets, plan, name, metric, out, second) if out is not None else []
    if out is not None:
        (out / FILE).unlink(missing_ok=True)
    if options.json:
        facts = {"dense": tickets.dense, "points": [p.to_json() for p in tickets.points], "split": tickets.split}
        print(json.dumps({**facts, "transferred": [p.to_json() for p in tickets.transferred]}))
        return 0
    print(ticket_files.text(tickets, name, metric, second))
    if files:
        print(f"\nFiles: {', '.join(map(str, files))}")
    return 0


def _folder(options: argparse.Namespace) -> Path | None:
    """Where the results go; raises `UsageError` if that would mix them with others."""
    from hwprune.errors import UsageError
    from hwprune.recovery.tickets.course import FILE

    if not options.out:
        if options.resume:
            raise UsageError("--resume needs --out: the folder of the drawing that goes on")
        return None
    out = Path(options.out)
    if options.resume:
        if not (out / FILE).exists():
            raise UsageError(f"{out} holds no unfinished drawing of tickets ({FILE}): leave --resume out")
        return out
    if (out / FILE).exists():
        raise UsageError(f"{out} holds an unfinished drawing of tickets: go on with --resume, or choose another --out")
    return args.require_new(out)
