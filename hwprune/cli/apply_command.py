"""hwprune apply."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.cli import apply_language
from hwprune.cli import arguments as args
from hwprune.errors import UsageError

if TYPE_CHECKING:
    from hwprune.pruning.candidate import Candidate
    from hwprune.pruning.pruner import Pruner
    from hwprune.records.recipe import UnitChoice

EPILOG = """RECIPE is a recipe.json, or the same choice for every unit that fits:
  hwprune apply channel=0.5 demo:digits --out out                       half of the channels, by OBS with compensation
  hwprune apply channel=0.25,2:4 model.py:workload --out out            first cut, then 2:4 on what is left
  hwprune apply unstructured=0.8 model.py:workload --scope global --criterion lamp --out out
  hwprune apply branch=0.2 model.py:workload --out out --score          the fifth of the branches that change least
  hwprune apply token=0.25 model.py:workload --out out --score          a quarter of the tokens goes after each attention
  hwprune apply neuron=0.25 hf:FOLDER --text valid.txt --format huggingface --out out --score
      a language model block by block: one block in memory at a time; layer=0.2 drops whole blocks
  hwprune apply blocks.json hf:FOLDER --text valid.txt --format huggingface --out out --score
      each block as the file says: {"schema": 1, "blocks": [{"neuron": 0.25}, {}, {"attention": 1}, {"layer": 1}, ...]}
"""


OF_LANGUAGE = ("memory", "choices", "measure", "target", "multiple", "quantize", "recover")
"""Options for language models alone."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="recipe.json, or PATTERN=SPARSITY[,PATTERN...]; with --format huggingface also layer, hidden, attention, mlp, kv, "
        "query, or a file that says it for each block",
    )
    args.add_workload(parser)
    parser.add_argument("--criterion", metavar="NAME", help="a name of `hwprune criteria`, for PATTERN=SPARSITY (default: obs)")
    parser.add_argument(
        "--compensation", metavar="NAMES", help="none, or joined by +: obs, lstsq, sequential, bias, meanvar, batchnorm"
    )
    parser.add_argument("--scope", choices=["unit", "global"], help="global: one threshold for the single weights of all layers")
    parser.add_argument("--score", action="store_true", help="metric on the validation data before and after, in PyTorch")
    parser.add_argument("--database", metavar="DIR", help="keep and reuse options and statistics in this folder")
    parser.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="units that stay as they are, such as '*.self_attn.*'"
    )
    parser.add_argument(
        "--format",
        metavar="F",
        default="onnx",
        help="huggingface: a folder that transformers loads, of a causal language model with --text; huggingface,onnx,gguf: "
        "an ONNX file with a cache and a GGUF file beside it; huggingface,pt2: a PyTorch program (default: onnx)",
    )
    parser.add_argument(
        "--multiple", metavar="N", type=args.whole,
        help="with --format huggingface: numbers of neurons are multiples of N (default: 32, or what the GGUF file's types need)",
    )  # fmt: skip
    parser.add_argument("--windows", metavar="N", type=args.whole, help="windows of --text that calibrate (default: 64)")
    parser.add_argument(
        "--choices", metavar="FILE", help="with --format huggingface: questions in a .jsonl, answered before and after"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", type=args.size, help="with --format huggingface: refuse what needs more, as 6GB"
    )
    parser.add_argument(
        "--measure", action="store_true", help="with --format huggingface: measure prompts and single tokens, before and after"
    )
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="with --format huggingface: where files will run: cpu, cpu-openvino, cpu-pytorch, or a profile (default: cpu)",
    )
    parser.add_argument(
        "--tokens",
        metavar="P+N",
        default="128+64",
        help="with --measure: a prompt of P tokens, N new ones; with pt2: what there is room for (default: 128+64)",
    )
    parser.add_argument(
        "--recover", metavar="distill:TOKENS", help="with --format huggingface: the dense model teaches the pruned one, from so "
        "many tokens of --text, such as distill:100k"
    )  # fmt: skip
    parser.add_argument(
        "--quantize", metavar="P,...", help="with --format huggingface,onnx: also files with weights of fewer bits: int8, int4"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for model.onnx, model.safetensors and recipe.json")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.cli.progress_bar import make_progress
    from hwprune.common import formatting
    from hwprune.pruning.pruner import Pruner
    from hwprune.workload import data_checks, loading

    formats = options.format.split(",")
    if unknown := [name for name in formats if name not in ("onnx", "huggingface", "gguf", "pt2")]:
        raise UsageError(f"--format takes onnx, huggingface, or huggingface,onnx,gguf,pt2, got {unknown[0]!r}")
    if (beside := [name for name in ("gguf", "pt2") if name in formats]) and "huggingface" not in formats:
        raise UsageError(f"--format {beside[0]} goes with huggingface: --format huggingface,{beside[0]}")
    if "huggingface" in formats:
        if options.scope:
            raise UsageError("--scope is not for --format huggingface, which takes a model block by block")
        by_block = options.recipe.endswith(".json")
        return apply_language.run(options, [] if by_block else _parse(options.recipe, apply_language.PATTERNS))
    if given := [f"--{name}" for name in OF_LANGUAGE if getattr(options, name)]:
        raise UsageError(f"{', '.join(given)}: for --format huggingface, which takes a language model block by block")
    out = args.require_new(options.out)
    wanted = None if options.recipe.endswith(".json") else _parse(options.recipe)
    if wanted is None and (options.criterion or options.scope):
        raise UsageError("--criterion and --scope are for PATTERN=SPARSITY; a recipe.json says its own")
    progress = make_progress(quiet=options.quiet)
    try:
        database = Path(options.database) if options.database else None
        pruner = Pruner(loading.load(args.source(options)), database, progress.calibrated)
        data_checks.check_batches(pruner.workload, pruner.graph.module)
        candidate, same = _uniform(pruner, wanted, options) if wanted is not None else _stored(pruner, options)
    finally:
        progress.close()
    difference = pruner.check_cut(candidate)
    candidate.export(out)
    before = sum(p.numel() for p in pruner.graph.module.parameters())
    facts: dict[str, Any] = {
        "out": str(out),
        "stored_decisions": same,
        "compensation": candidate.recipe.compensation,
        "cut_difference": difference,
        "params": candidate.parameter_count,
        "zeros": sum(int((~mask).sum()) for mask in candidate.masks.values()),
        "dense_params": before,
    }
    if options.score:
        facts["dense_metric"], facts["metric"], how = _scores(pruner, candidate)
        if how:
            print(how, file=sys.stderr)
    if options.json:
        print(json.dumps(facts))
        return 0
    how = "with its stored decisions" if same else "as computed for this model"
    zeros = f", {formatting.count(facts['zeros'])} of them zero" if facts["zeros"] else ""
    sizes = f"{formatting.count(before)} -> {formatting.count(candidate.parameter_count)} parameters{zeros}"
    steps = candidate.recipe.compensation
    print(
        f"Applied {len(candidate.recipe.choices)} choices {how} (compensation {steps}): {sizes}; "
        f"cut equals masked to {difference:.1g}."
    )
    if options.score:
        name = pruner.workload.scoring.name
        print(f"{name} on the validation data, in PyTorch: {facts['dense_metric']:.4g} -> {facts['metric']:.4g}")
    print(f"Files: {out}")
    return 0


def _parse(text: str, more: Sequence[str] = ()) -> list[tuple[str, float | None]]:
    """channel=0.5,2:4 -> [(channel, 0.5), (2:4, None)].

    Args:
        more: patterns that only this road knows.
    """
    from hwprune import patterns

    choices: list[tuple[str, float | None]] = []
    for word in text.split(","):
        name, _, level = word.partition("=")
        if name not in (patterns.BRANCH, *more):
            patterns.get(name, more)
        try:
            share = float(level) if level else None
        except ValueError:
            share = math.nan
        if share is not None and not math.isfinite(share):
            raise UsageError(f"{word!r} is no PATTERN=SPARSITY: the sparsity must be a number such as 0.5")
        choices.append((name, share))
    return choices


def _uniform(pruner: Pruner, wanted: list[tuple[str, float | None]], options: argparse.Namespace) -> tuple[Candidate, bool]:
    from hwprune import compensation, criteria, patterns
    from hwprune.pruning.uniform import uniform_recipe
    from hwprune.records.recipe import Recipe

    steps = pruner.default_compensation() if options.compensation is None else options.compensation
    idle = [step.name for step in compensation.parse(steps) if not step.applies(pruner.graph.module)]
    if idle:
        raise UsageError(f"compensation {', '.join(idle)} has nothing to do in {pruner.workload.name}: leave it out")
    choices: list[UnitChoice] = []
    for name, level in wanted:
        fixed = name != patterns.BRANCH and patterns.get(name).fixed_sparsity is not None
        if level is None and not fixed:
            raise UsageError(f"pattern {name} needs a sparsity: {name}=0.5")
        if fixed and level is not None and abs(level - (patterns.get(name).fixed_sparsity or 0.0)) > 1e-6:
            raise UsageError(f"pattern {name} fixes its sparsity: write {name}, not {name}={level:g}")
        if name == patterns.BRANCH and options.criterion not in (None, criteria.BLOCK_INFLUENCE):
            raise UsageError(f"branches are ranked by {criteria.BLOCK_INFLUENCE}, got --criterion {options.criterion}")
        if name in patterns.TOKENS and options.criterion is not None:
            raise UsageError(f"pattern {name} goes by {patterns.TOKENS[name]} of each input: leave --criterion out")
        choices += uniform_recipe(pruner, name, level or 0.0, options.criterion or "obs", steps, options.scope or "unit").choices
    left = [choice for choice in choices if not any(fnmatchcase(choice.unit, glob) for glob in options.exclude)]
    if choices and not left:
        raise UsageError(f"--exclude {' '.join(options.exclude)} leaves nothing to prune")
    choices = left
    masked = [choice.unit for choice in choices]
    if len(masked) != len(set(masked)):
        raise UsageError(f"{options.recipe}: two patterns choose for the same units; give one mask pattern, and each axis once")
    recipe = Recipe(tuple(choices), compensation.canonical(steps))
    return pruner.prune(recipe), False


def _stored(pruner: Pruner, options: argparse.Namespace) -> tuple[Candidate, bool]:
    import dataclasses

    from hwprune import compensation
    from hwprune.onnx_files import recipe_files

    stored = recipe_files.read_recipe(Path(options.recipe))
    recipe = stored.recipe
    if options.compensation is not None:
        recipe = dataclasses.replace(recipe, compensation=compensation.canonical(options.compensation))
    if (Path(options.recipe).parent / "recovery.json").is_file():
        print(
            "hwprune: the weights beside this recipe were trained; this prunes without training. "
            "The trained ones are in model.safetensors and model.onnx there",
            file=sys.stderr,
        )
    same = stored.fingerprint == pruner.fingerprint
    return (pruner.prune(recipe, stored.keeps, stored.masks, stored.orders) if same else pruner.prune(recipe)), same


def _scores(pruner: Pruner, candidate: Candidate) -> tuple[float, float, str | None]:
    import torch

    from hwprune.workload import data_checks, scoring
    from hwprune.workload.workload import all_tensors

    dense, pruned, targets = [], [], []
    with torch.no_grad():
        for inputs, target in pruner.workload.batches("validation"):  # once: a loader may shuffle, or draw what it yields
            dense.append(all_tensors(pruner.graph.module(*inputs)))
            pruned.append(all_tensors(candidate.module(*inputs)))
            targets.append(target)
    metric = pruner.workload.scoring
    data_checks.check_labels(pruner.workload, "validation", dense, targets)
    return (
        scoring.score(metric, dense, targets, dense, sure=False).value,
        scoring.score(metric, pruned, targets, dense, sure=False).value,
        data_checks.how_read(metric, dense, targets),
    )
