"""hwprune apply."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hwprune.cli import arguments as args
from hwprune.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="recipe.json")
    args.add_workload(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for model.onnx, model.safetensors and recipe.json")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune import export, sources, units
    from hwprune.pruning import Pruner

    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder: choose another --out")
    recipe, fingerprint, keeps, masks = export.read_recipe(Path(options.recipe))
    pruner = Pruner(sources.load(args.source(options)))
    same = fingerprint == pruner.fingerprint
    candidate = pruner.prune(recipe, keeps, masks) if same else pruner.prune(recipe)
    difference = pruner.check_cut(candidate)
    candidate.export(out)
    before = sum(p.numel() for p in pruner.graph.module.parameters())
    facts = {
        "out": str(out),
        "stored_decisions": same,
        "cut_difference": difference,
        "params": candidate.parameter_count,
        "dense_params": before,
    }
    if options.json:
        print(json.dumps(facts))
        return 0
    how = "with its stored decisions" if same else "anew, because the model is not the one it was made for"
    print(
        f"Applied {len(recipe.choices)} choices {how}: "
        f"{units.count(before)} -> {units.count(candidate.parameter_count)} parameters; "
        f"cut equals masked to {difference:.1g}.\nFiles: {out}"
    )
    return 0
