"""Argument types and helpers that several commands share."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from hwprune.errors import UsageError

_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(GB|MB|kB|B|)")


def seconds(text: str) -> float:
    """90, 90s, 30m, 2h -> seconds."""
    match = _TIME.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 90, 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def number(text: str) -> float:
    """0.01, 1e-3."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number: write 0.01") from None


def whole(text: str) -> int:
    """40."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number: write 40") from None


class Share(float):
    """A number that was written in per cent."""


def drop(text: str) -> float:
    """0.01, or 1% of a metric that is a share, which is the same; of a perplexity 5% is a share of the dense one."""
    try:
        return Share(float(text[:-1]) / 100) if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a drop: write 0.01, or 1% of a share such as an accuracy") from None


def require_writable(name: str | Path) -> Path:
    """The folder, which need not exist yet; raises `UsageError` if nothing could be written there.

    Asked before anything takes long.
    """
    path = Path(name)
    there = path if path.exists() else next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"can't write into {name}: it is not a folder, or not writable")
    return path


def require_new(name: str | Path) -> Path:
    """Check an output folder, which must be empty or new. Raises `UsageError`."""
    path = require_writable(name)
    if path.exists() and any(path.iterdir()):
        raise UsageError(f"{path} is not an empty folder: choose another --out")
    return path


PHASES = ("prefill", "decode")
_LATENCY = re.compile(r"(\d+(?:\.\d+)?)(ms|us|s)")


def latency(text: str) -> float:
    """2ms, 150us, 0.01s -> seconds. A bare number is refused: nobody could tell its unit."""
    match = _LATENCY.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a latency: write 2ms, 150us or 0.01s")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def latencies(text: str) -> float | dict[str, float]:
    """A latency, or one of each phase: prefill=200ms,decode=30ms."""
    if "=" not in text:
        return latency(text)
    found: dict[str, float] = {}
    for word in text.split(","):
        name, _, value = word.partition("=")
        if name not in PHASES or name in found:
            raise argparse.ArgumentTypeError(f"{text!r}: write prefill=200ms,decode=30ms, or one of the two")
        found[name] = latency(value)
    return found


def size(text: str) -> int:
    """4GB, 500MB -> bytes."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 4GB or 500MB")
    return int(float(match[1]) * {"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[match[2]])


def add_workload(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add WORKLOAD and its key=value words.

    Args:
        default: what `source` is to take where none is given. The parser's own default stays None: what was given counts over a
            file, and what is merely the default does not.
    """
    parser.add_argument(
        "workload", metavar="WORKLOAD", nargs="?" if default else None,
        help="demo:digits, demo:digits-vit, path/to/file.py:function, package.module:function, model.onnx, "
        "or with --data hf:NAME-or-folder, timm:NAME, torchvision:NAME"
        + (f" (default: {default})" if default else ""),
    )  # fmt: skip
    parser.add_argument("words", metavar="key=value", nargs="*", help="arguments for the workload's function")
    parser.add_argument(
        "--data", metavar="FILE", help="data of a model that has none: file.npz with an array for each input, or file.py:function"
    )
    parser.add_argument(
        "--shape",
        metavar="SIZES",
        help="sizes of the inputs of a model.onnx without data, e.g. 1x3x224x224; of several joined by commas",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="for hf:FOLDER of a language model: a text that calibrates and judges, or calibration.txt,test.txt",
    )
    parser.add_argument("--length", metavar="N", type=whole, help="tokens of a window of --text (default: 512)")
    parser.add_argument("--gguf", metavar="NAME", help="file in hf:FOLDER that holds the weights")


def source(options: argparse.Namespace, default: str = "") -> str:
    """The workload's source with its words; ``default`` where none was given."""
    from hwprune.workload import source_words

    workload = default if options.workload is None else options.workload
    more = [f"{word}={value}" for word, value in _options_as_words(options) if value]
    return source_words.join([workload, *options.words, *more])


def _options_as_words(options: argparse.Namespace) -> list[tuple[str, object]]:
    return [(name, getattr(options, name)) for name in ("data", "shape", "text", "length", "gguf")]


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def width() -> int:
    """Columns of the terminal; 100 when there is none."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100


def lines(rows: Iterable[tuple[str, str]]) -> str:
    """name  text, aligned."""
    pairs = list(rows)
    wide = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name.ljust(wide)}  {text}".rstrip() for name, text in pairs)
