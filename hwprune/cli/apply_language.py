"""hwprune apply ... --format huggingface: a language model, block by block."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.cli import arguments as args
from hwprune.errors import UsageError

if TYPE_CHECKING:
    from hwprune.records.target import Target

WHOLE = ("layer", "hidden", "attention", "mlp")
PATTERNS = (*WHOLE, "kv", "query")
"""The patterns that only this road knows, without the imports that they need: the command line starts at once."""


def run(options: argparse.Namespace, choices: list[tuple[str, float | None]]) -> int:
    """Prune a language model block by block, and tell what came of it.

    Args:
        choices: pattern, sparsity; without any the recipe is a file that says it for each block.
    """
    from hwprune.cli.progress_bar import make_progress
    from hwprune.streaming import learned_masks, quantised_onnx, road
    from hwprune.streaming.distilling import tokens_of
    from hwprune.streaming.phases import Tokens
    from hwprune.streaming.plan_file import read_blocks
    from hwprune.streaming.sweep_plan import SweepPlan
    from hwprune.workload.language import text_data

    if not options.workload.startswith("hf:") or not options.text:
        raise UsageError("--format huggingface is for hf:FOLDER of a causal language model with --text file.txt")
    out = args.require_writable(options.out)
    if out.exists() and any(out.iterdir()) and not (out / road.WORK).is_dir():  # with it, a killed run is gone on with
        raise UsageError(f"{out} is not an empty folder: choose another --out")
    wanted = [(name, _share(name, level)) for name, level in choices]
    by_block = () if wanted else read_blocks(Path(options.recipe))
    criterion = options.criterion or ("obs" if _cuts(wanted) else "sparsegpt")
    formats, source = options.format.split(","), Path(options.workload.removeprefix("hf:"))
    width = any(name == "hidden" for name, _ in wanted)
    multiple = options.multiple or road.usual_multiple(source, options.gguf, gguf_out="gguf" in formats, width=width)
    # What was learned from words is not what least squares would keep: their repair made it worse (docs/figures/language.md).
    usual = "obs" if learned_masks.tokens_of(criterion) is None else "none"
    compensation, strict = options.compensation or usual, "gguf" in formats
    plan = SweepPlan(wanted, criterion, compensation, tuple(options.exclude), multiple, strict, by_block)
    numbers = {"text": options.text, "length": options.length, "windows": options.windows}
    data = text_data({key: value for key, value in numbers.items() if value is not None})
    precisions = quantised_onnx.parse(options.quantize) if options.quantize else ()
    if precisions and "onnx" not in formats:
        raise UsageError("--quantize writes ONNX files: --format huggingface,onnx")
    target = _target(options.target, formats)
    learned = tokens_of(options.recover) if options.recover else 0
    progress = make_progress(quiet=options.quiet)
    try:
        facts = road.prune_folder(
            source, data, plan, out, gguf=options.gguf, memory=options.memory,
            score=options.score,
            choices=Path(options.choices) if options.choices else None, onnx=bool({"onnx", "pt2"} & {*formats}),
            gguf_out="gguf" in formats,
            tokens=Tokens.parse(options.tokens) if options.measure else None,
            asked=Tokens.parse(options.tokens) if "pt2" in formats else None, target=target,
            quantize=precisions,
            distil_tokens=learned, step=progress.stage,
        )  # fmt: skip
    except KeyboardInterrupt:
        if (out / road.WORK).is_dir():
            print("The same command goes on at the block where it was.", file=sys.stderr)
        raise
    finally:
        progress.close()
    if options.json:
        print(json.dumps(facts))
        return 0
    _tell(facts)
    if multiple > 1 and any("neuron" in block for block in (dict(wanted), *by_block)):
        print(f"Numbers of neurons are multiples of {multiple} (--multiple 1: as asked).")
    print(f"Files: {out}")
    return 0


def _target(name: str | None, formats: list[str]) -> Target | None:
    """Where files are measured, which must be files that it runs. Raises `UsageError`."""
    from hwprune.records import target as targets
    from hwprune.streaming.phases import runs_programs

    if "pt2" in formats and "onnx" in formats:
        raise UsageError("--format takes one of onnx and pt2: the target runs one of them")
    target = targets.load(name or "cpu-pytorch") if name or "pt2" in formats else None
    if target is not None:
        wanted = "pt2" if runs_programs(target) else "onnx"
        if wanted not in formats:
            raise UsageError(f"--target {target.name} is for other files: --format huggingface,{wanted}")
    return target


def _share(name: str, level: float | None) -> float:
    """What goes, where the pattern doesn't say it by itself. Raises `UsageError`."""
    from hwprune import patterns

    if name not in PATTERNS and patterns.get(name).fixed_sparsity is not None:
        return level if level is not None else 0.0
    if level is None:
        raise UsageError(f"pattern {name} needs a sparsity: {name}=0.25")
    if name not in WHOLE and not 0 < level < 1:  # of these the plan has more to say
        raise UsageError(f"{name}={level:g}: the fraction that goes must be between 0 and 1")
    return level


def _tell(facts: dict[str, Any]) -> None:
    """What came of it, a line each."""
    from hwprune.common import formatting

    gone = facts["blocks"] - len(facts["kept"])
    sizes = f"{formatting.count(facts['dense_params'])} -> {formatting.count(facts['params'])} parameters"
    narrow = f", {facts['width']} channels between blocks" if facts["width"] else ""
    dropped = f", {gone} of {facts['blocks']} blocks dropped" if gone else ""
    for kind, places in facts["silent"].items():
        dropped += f", no {'MLP' if kind == 'mlp' else kind} in {len(places)} of {facts['blocks']} blocks"
    spent = f"{formatting.duration(facts['seconds'])}, at most {formatting.size(facts['peak_bytes'])} of memory"
    print(f"Pruned block by block: {sizes}{narrow}{dropped}; {spent}.")
    loads = (
        "loads in transformers and generates" if facts["generates"] else "was run block by block (too large to load as a whole)"
    )
    print(f"What was written computes what was pruned, and {loads}.")
    if facts["uneven"]:
        code = "AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)"
        vllm = "vLLM knows the layout (Nemotron-NAS; not run here)" if facts["vllm"] else "vLLM knows no such layout"
        print(f"Blocks have different sizes, which the class itself does not know: code lies in the folder, {code}; {vllm}.")
    elif any(facts["silent"].values()):
        print("Its class knows no such blocks: the folder holds zeros there, as large as before. ONNX and GGUF files have none.")
    if facts["plain"]:
        places = formatting.some(len(facts["plain"]), "place")
        print(f"In {places} the repair did not help windows that it had not seen, and was left out.")
    if "distilled" in facts:
        told = facts["distilled"]
        spent, before = (formatting.duration(told[key]) for key in ("seconds", "teacher_seconds"))
        change = f"{told['before']:.3f} -> {told['after']:.3f} nats a token from it on windows that took no part"
        how = "" if told["kept"] else ": it was left out"
        learned = f"{formatting.count(told['tokens'])} tokens in {spent} (its own words: {before})"
        print(f"Taught by the dense model: {learned}; {change}{how}.")
    if facts["params"] == facts["dense_params"]:
        print("Zeros alone make nothing faster: the folder is as large as before, for runtimes that know the pattern.")
    if "perplexity" in facts:
        untaught = f" ({facts['untaught_perplexity']:.2f} before it was taught)" if "untaught_perplexity" in facts else ""
        print(
            f"Perplexity on {facts['windows']} windows of {facts['length']} tokens that calibrated nothing: "
            f"{facts['dense_perplexity']:.2f} -> {facts['perplexity']:.2f}{untaught}"
        )
    if "accuracy" in facts:
        share = f"{formatting.percent(facts['dense_accuracy'])} -> {formatting.percent(facts['accuracy'])}"
        print(f"Right answers to {formatting.some(facts['questions'], 'question')}: {share}")
    _tell_files(facts)


def _tell_files(facts: dict[str, Any]) -> None:
    """What lies beside the folder."""
    from hwprune.common import formatting
    from hwprune.streaming.phases import Phases

    if "gguf_bytes" in facts:
        types = ", ".join(f"{count} {name}" for name, count in sorted(facts["gguf_types"].items()))
        before, after = (formatting.size(facts[key]) for key in ("dense_gguf_bytes", "gguf_bytes"))
        scored = f"; its perplexity {facts['gguf_perplexity']:.2f}" if "gguf_perplexity" in facts else ""
        ran = "" if "llama_missing" in facts else " and run in llama.cpp"
        print(f"GGUF: {before} -> {after} ({types}), read back{ran} and compared{scored}.")
        if "llama_missing" in facts:
            print(f"llama.cpp itself did not run it: {facts['llama_missing']}")
    if "llama_phases" in facts:
        print("In llama.cpp, on one thread of this CPU:")
        print("\n".join(Phases.from_json(facts["llama_phases"]).text()))
    if "cache_bytes_per_token" in facts:
        before = f"{formatting.size(facts['dense_cache_bytes_per_token'])} -> " if "dense_cache_bytes_per_token" in facts else ""
        print(f"Cache: {before}{formatting.size(facts['cache_bytes_per_token'])} a token in 32 bits.")
    if "openvino" in facts:
        print(f"OpenVINO, with the cache as a state: {facts['openvino']}, run beside ONNX Runtime.")
    if "program" in facts:
        print(f"PyTorch program: {facts['program']}, with room for {facts['positions']} tokens (--tokens), run beside the model.")
    if "phases" in facts:
        print(f"On {facts['target']}:")
        print("\n".join(Phases.from_json(facts["phases"]).text()))
    for name, told in facts.get("quantised", {}).items():
        before, after = (formatting.size(told[key]) for key in ("float_bytes", "bytes"))
        scored = f"; perplexity {told['perplexity']:.2f}" if "perplexity" in told else ""
        also = f", {told['openvino']}" if "openvino" in told else ""
        print(f"{name} ({told['file']}{also}): {before} -> {after}{scored}.")
        if "phases" in told:
            print("\n".join(Phases.from_json(told["phases"]).text()))


def _cuts(wanted: list[tuple[str, float]]) -> bool:
    """Is anything cut, or are weights masked only?"""
    from hwprune import patterns

    return not any(name in patterns.WEIGHT_PATTERNS or ":" in name for name, _ in wanted)
