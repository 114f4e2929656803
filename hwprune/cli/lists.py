"""hwprune targets | spaces | criteria | patterns | samplers: one line each."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hwprune.cli import arguments as args

if TYPE_CHECKING:
    from hwprune.searching.space.space_file import SpaceFile


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    rows = {"targets": _targets, "spaces": _spaces, "criteria": _criteria, "patterns": _patterns, "samplers": _samplers}[
        options.command
    ]()
    print(json.dumps([{"name": name, "text": text} for name, text in rows], indent=1) if options.json else args.lines(rows))
    return 0


def _targets() -> list[tuple[str, str]]:
    from hwprune.latency.availability import missing
    from hwprune.records import target

    rows = []
    for name in target.names():
        profile = target.load(name)
        reasons = missing(profile)
        estimate = "; --estimate works" if profile.roofline else ""
        rows.append(
            (
                name,
                f"{profile.description}; {'not here: ' + '; '.join(reasons) + estimate if reasons else 'can be measured here'}",
            )
        )
    return rows


def _spaces() -> list[tuple[str, str]]:
    from hwprune.searching.space import space_file

    return [(name, explained(space_file.load(name))) for name in space_file.names()]


def explained(one: SpaceFile) -> str:
    """What a space searches, in a sentence or two. How many recipes that is depends on the model: search and report say it."""
    cuts = f"cuts {', '.join(one.roles)}" if one.roles else "cuts nothing"
    masks = f"masks {', '.join(one.patterns)} where the target runs them faster" if one.patterns else "no masks"
    levels = f"up to {one.levels} sizes an axis, at most {one.max_sparsity:.0%} of it removed" if one.roles else ""
    more = ["repeated blocks share a decision"] if one.tie else []
    more += [f"leaves out {', '.join(one.exclude)}"] if one.exclude else []
    facts = "; ".join(filter(None, [cuts, levels, masks, f"by {', '.join(one.criteria)}", *more]))
    return f"{one.description} ({facts})"


def _criteria() -> list[tuple[str, str]]:
    from hwprune import criteria
    from hwprune.methods import method

    rows = []
    for name, criterion in criteria.CRITERIA.items():
        reads = {"gram": "inputs", "input_square": "inputs", "fisher": "gradients", "grad_abs": "gradients"}
        kind = next((reads.get(need, "activations") for need in criterion.needs), None)
        more = "; as a method it updates what it keeps" if not isinstance(method.METHODS[name], method.Scored) else ""
        rows.append((name, criterion.description + more + (f" [needs {kind}]" if kind else "")))
    return [*rows, (criteria.BLOCK_INFLUENCE, "ranks whole branches by how much they turn what passes them [needs activations]")]


def _patterns() -> list[tuple[str, str]]:
    from hwprune import patterns

    rows = [(name, pattern.description) for name, pattern in patterns.PATTERNS.items()]
    rows.append((patterns.BRANCH, "a whole residual branch, dropped"))
    return [*rows, ("N:M", "any 1 <= N < M"), ("block:RxC", "any block of at least two weights")]


def _samplers() -> list[tuple[str, str]]:
    from hwprune.searching.sampling import samplers

    return [(name, text) for name, (text, _) in samplers.SAMPLERS.items()]
