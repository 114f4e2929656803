"""hwprune search hf:FOLDER --text ...: which size each block of a language model keeps."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from hwprune.cli import arguments as args
from hwprune.errors import UsageError

NOT_HERE = (
    "job", "time", "sampler", "min_speedup", "remote", "table", "estimate",
    "database", "all_patterns", "trial_timeout", "memory_limit", "storage", "data", "shape",
)  # fmt: skip
"""Options of `hwprune search` that this search has no use for."""


def wanted(options: argparse.Namespace) -> bool:
    """Is it a language model's folder with a text?"""
    return bool(options.workload and options.workload.startswith("hf:") and options.text)


def run(options: argparse.Namespace) -> int:
    """Search, and tell what came of it."""
    from hwprune.cli.progress_bar import make_progress
    from hwprune.language.language_job import LanguageJob
    from hwprune.language.language_record import told
    from hwprune.language.language_search import search_language
    from hwprune.streaming import quantised_onnx, road
    from hwprune.streaming.distilling import tokens_of
    from hwprune.streaming.phases import Tokens
    from hwprune.workload.language import text_data

    given = [f"--{name.replace('_', '-')}" for name in NOT_HERE if getattr(options, name) is not None]
    if given or options.words:
        raise UsageError(f"the search of a language model takes no {', '.join(given or options.words)}")
    if isinstance(options.max_latency, float):
        raise UsageError("a language model has two latencies: --max-latency prefill=200ms,decode=30ms")
    if options.max_drop is not None and options.max_drop <= 0:
        raise UsageError("--max-drop of a language model is what perplexity may rise by: 2, or 10%")
    source = Path(options.workload.removeprefix("hf:"))
    numbers = {"text": options.text, "length": options.length, "windows": options.windows}
    job = LanguageJob(
        source, text_data({key: value for key, value in numbers.items() if value is not None}),
        Tokens.parse(options.tokens or "128+64"), options.gguf, options.target or "cpu", options.space or "default",
        _limits(options), options.trials or 60, options.points or 4, options.seed or 0,
        road.usual_multiple(source, options.gguf, gguf_out=options.gguf is not None),
        quantize=quantised_onnx.parse(options.quantize) if options.quantize else (),
        distil_tokens=tokens_of(options.recover) if options.recover else 0,
        questions=Path(options.choices) if options.choices else None, max_drop=options.max_drop,
        relative=isinstance(options.max_drop, args.Share),
    )  # fmt: skip
    out = Path(options.out or f"runs/{source.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    progress = make_progress(quiet=options.quiet or options.json, verbose=options.verbose)
    try:
        record = search_language(job, out, resume=options.resume, step=progress.stage)
    except KeyboardInterrupt:
        progress.close()
        if out.is_dir():
            words = [word for word in sys.argv[1:] if word != "--resume"]
            again = shlex.join(["hwprune", *words, *([] if options.out else ["--out", str(out)]), "--resume"])
            print(f"\nhwprune: interrupted; go on with:\n  {again}", file=sys.stderr)
        return 130
    finally:
        progress.close()
    if options.json:
        print(json.dumps({"run": str(out), "front": record["front"], "refused": record["refused"]}))
    elif not options.quiet:
        print(told(record))
        for reason in record["refused"]:
            print(f"Not searched: {reason}")
        print(f"\nReport: {out / 'report.html'}")
        first = record["front"][0]
        file = first["facts"].get("program", "onnx/model.onnx")
        print(f"Files:  {out / 'candidates'} (each a folder for transformers with {file} and blocks.json)")
        if "openvino" in first["facts"]:
            print(f"        and {first['facts']['openvino']}, which was measured")
        if job.gguf is not None:
            blocks = out / "candidates" / str(first["trial"]) / "blocks.json"
            print(f"\nAs a GGUF file: hwprune apply {blocks} ... --format huggingface,gguf")
    return 0


def _limits(options: argparse.Namespace) -> dict[str, float] | None:
    given = {"size": options.max_size, "cache": options.max_cache}
    return {**(options.max_latency or {}), **{name: value for name, value in given.items() if value}} or None


def is_run(run_directory: Path) -> bool:
    """Is it the run of such a search?"""
    return (run_directory / "language.json").is_file() and (run_directory / "record.json").is_file()


def report(run_directory: Path, out: Path | None) -> int:
    """Write its page and table anew."""
    from hwprune.common.files import read_json
    from hwprune.language.language_record import FRONT, LanguagePoint, front_csv, told
    from hwprune.language.language_report import FILE, write_report

    record, place = read_json(run_directory / "record.json"), out or run_directory
    place.mkdir(parents=True, exist_ok=True)
    write_report(record, place / FILE)
    (place / FRONT).write_text(
        front_csv([LanguagePoint(**point) for point in record["front"]], record.get("dense_quantised", {}))
    )
    print(told(record))
    print(f"\nWritten: {place / FILE}, {place / FRONT}")
    return 0
