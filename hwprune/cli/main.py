"""Entry point. Imports no torch, onnx or optuna: ``hwprune --help`` is instant."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwprune.cli.parser import Parser
from hwprune.common import environment
from hwprune.errors import HwpruneError, HwpruneWarning, UsageError
from hwprune.version import VERSION

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
ALMOST_NOTHING = 10_000_000
"""Bytes free on a disk below which it is taken for the one that is full."""

COMMANDS = {
    "init": "write a commented workload file and job.toml to begin with",
    "search": "search for recipes, measure them on the target, confirm the front",
    "worker": "join a running search, on this machine or another",
    "inspect": "what can be pruned in a model, and for what cannot, why not",
    "probe": "latency only: which sizes and patterns pay on the target, layer by layer",
    "apply": "apply one recipe, no search",
    "ticket": "find lottery tickets, and compare them with random ones",
    "report": "write report.html, front.csv, trials.csv and front.png again from record.json",
    "export": "files to deploy for one point of a run's front",
    "rerank": "measure a finished front on another device, batch size or runtime; prunes nothing again",
    "cascade": "two models of a front, of which the larger one runs where the smaller one is not sure",
    "check": "does it build: NVIDIA's own parser and builder, for GPUs that are elsewhere",
    "verify": "parity, metric and latency of an export or a run, again, on this machine",
    "targets": "list targets, and what this machine can measure",
    "spaces": "list search spaces",
    "criteria": "list criteria",
    "patterns": "list patterns",
    "samplers": "list samplers",
    "completion": "print a completion script for your shell",
    "doctor": "versions, devices, runtimes, and what is missing",
}

EPILOG = """examples:
  hwprune search                                  the embedded demo on this CPU
  hwprune search model.py:workload --trials 100   your own model (a function that returns a hwprune.Workload)
  hwprune search --resume --out runs/demo         go on with an interrupted run
  hwprune inspect model.py:workload               what can be pruned
  hwprune probe model.py:workload --target cpu    what would be faster, before any accuracy work
  hwprune export runs/demo --max-drop 0.01 --format onnx --out deploy
  hwprune verify deploy

exit codes: 0 done; 2 wrong usage or configuration; 1 the run failed, or a search found nothing to deliver;
130 interrupted (Ctrl-C, SIGTERM), state saved
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="hwprune",
        description="Hardware-aware pruning search: accuracy against measured speedup.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hwprune {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        module = importlib.import_module(f"hwprune.cli.{_module(name)}")
        sub = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False,
            epilog=getattr(module, "EPILOG", None), formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.arguments(sub)
        sub.set_defaults(run=module.run)
    _hidden(commands)
    return parser


def _hidden(commands: Any) -> None:
    """What `--remote` starts on the other machine; it speaks JSON lines and is of no use to people."""
    commands.add_parser("bench-worker", add_help=False).set_defaults(run=_bench_worker)


def _bench_worker(_: argparse.Namespace) -> int:
    from hwprune.latency import worker

    worker.main()
    return DONE


def _module(command: str) -> str:
    return "lists" if command in ("targets", "spaces", "criteria", "patterns", "samplers") else f"{command}_command"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows ASCII alone gets ? for what it can't show, and no traceback
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    environment.prepare()
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # Ctrl-C makes it print where it was
    options = build_parser().parse_args(arguments)
    if options.run is not _bench_worker:
        _hear_sigterm()
    with warnings.catch_warnings():
        _filter_warnings()
        return _run(options)


def _hear_sigterm() -> None:
    """Take SIGTERM, which batch systems and containers send, as Ctrl-C: the state is saved, and how to go on is told."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def heard(number: int, frame: Any) -> None:
        interrupt = signal.getsignal(signal.SIGINT)  # training hears it in its own way
        (interrupt if callable(interrupt) else signal.default_int_handler)(number, frame)

    signal.signal(signal.SIGTERM, heard)


def _filter_warnings() -> None:
    """Ours are shown in one line; libraries', which are about their own future, where the user has asked for them."""
    show = warnings.showwarning

    def showwarning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, HwpruneWarning):
            print(f"hwprune: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = showwarning
    if not sys.warnoptions and "HWPRUNE_DEBUG" not in os.environ:  # warnoptions: -W and PYTHONWARNINGS
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", HwpruneWarning)


def _full(path: str | None) -> str:
    """Which disk is full, and the way out. Not every error says where it was writing."""
    here = [Path(path)] if path else [Path.cwd(), Path(tempfile.gettempdir()), Path.home()]
    full = []
    for place in here:
        while not place.exists() and place != place.parent:
            place = place.parent  # noqa: PLW2901 - the nearest folder that is there
        free = shutil.disk_usage(place).free
        if path or free < ALMOST_NOTHING:
            full.append(f"{place} ({free / 1e6:.0f} MB free)")
    where = f" that holds {' and '.join(full)}" if full else ""
    return (
        f"the disk{where} is full. Free some space and resume the search (--resume), or put the run elsewhere (--out), "
        "temporary files too (TMPDIR)"
    )


def _run(options: argparse.Namespace) -> int:
    """Run a command whose options are parsed; errors become exit codes."""
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"hwprune: {error}", file=sys.stderr)
        return USAGE
    except HwpruneError as error:
        print(f"hwprune: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; nothing more to tell
        return DONE
    except OSError as error:  # a folder that is read-only, a full disk: nothing of ours is wrong
        if "HWPRUNE_DEBUG" in os.environ:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"hwprune: {_full(error.filename)}", file=sys.stderr)
            return FAILED
        if error.filename is None:
            raise
        print(f"hwprune: can't use {error.filename}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("hwprune: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
