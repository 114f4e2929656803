"""hwprune targets | spaces | criteria | patterns | samplers: one line each."""

from __future__ import annotations

import argparse
import json

from hwprune.cli import arguments as args


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    rows = {"targets": _targets, "spaces": _spaces, "criteria": _criteria, "patterns": _patterns, "samplers": _samplers}[
        options.command
    ]()
    print(json.dumps([{"name": name, "text": text} for name, text in rows], indent=1) if options.json else args.lines(rows))
    return 0


def _targets() -> list[tuple[str, str]]:
    from hwprune import target
    from hwprune.latency.worker import missing

    rows = []
    for name in target.names():
        one = target.load(name)
        reasons = missing(one)
        estimate = "; --estimate works" if one.roofline else ""
        rows.append(
            (name, f"{one.description}; {'not here: ' + '; '.join(reasons) + estimate if reasons else 'can be measured here'}")
        )
    return rows


def _spaces() -> list[tuple[str, str]]:
    from hwprune.searching import space

    return [(name, space.load(name).description) for name in space.names()]


def _criteria() -> list[tuple[str, str]]:
    from hwprune import criteria, method

    rows = []
    for name, one in criteria.CRITERIA.items():
        reads = {"gram": "inputs", "input_square": "inputs", "fisher": "gradients", "grad_abs": "gradients"}
        kind = next((reads.get(need, "activations") for need in one.needs), None)
        more = "; as a method it updates what it keeps" if not isinstance(method.METHODS[name], method.Scored) else ""
        rows.append((name, one.description + more + (f" [needs {kind}]" if kind else "")))
    return [*rows, (criteria.BLOCK_INFLUENCE, "ranks whole branches by how much they turn what passes them [needs activations]")]


def _patterns() -> list[tuple[str, str]]:
    from hwprune import patterns

    rows = [(name, one.description) for name, one in patterns.PATTERNS.items()]
    rows.append((patterns.BRANCH, "a whole residual branch, dropped"))
    return [*rows, ("N:M", "any 1 <= N < M"), ("block:RxC", "any block of at least two weights")]


def _samplers() -> list[tuple[str, str]]:
    from hwprune.searching import samplers

    return [(name, text) for name, (text, _) in samplers.SAMPLERS.items()]
