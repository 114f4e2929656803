"""A plan for each block of a language model, in a JSON file.

    {"schema": 1, "blocks": [{"neuron": 0.25}, {}, {"attention": 1}, {"layer": 1}, {"head": 0.34, "neuron": 0.5}]}

There is an entry for each block of the dense model, in order: pattern -> the fraction that goes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprune import patterns
from hwprune.errors import UsageError
from hwprune.streaming.sublayers import KINDS
from hwprune.streaming.sweep_plan import KV, LAYER, QUERY

SCHEMA = 1
GO = (LAYER, *KINDS)
"""What goes as a whole, or not."""


def read_blocks(path: Path) -> tuple[dict[str, float], ...]:
    """The file's blocks.

    Raises:
        UsageError: what is wrong with it, all at once.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("blocks"), list) or not data["blocks"]:
        raise UsageError(
            f'{path} has no list of blocks: it must look like {{"schema": {SCHEMA}, "blocks": [{{"neuron": 0.25}}, ...]}}'
        )
    if data.get("schema") != SCHEMA:
        raise UsageError(f"{path} has schema {data.get('schema')!r}; this version reads {SCHEMA}")
    known = (*GO, KV, QUERY, *patterns.AXIS_PATTERNS)
    faults = [f"block {index}: {fault}" for index, block in enumerate(data["blocks"]) for fault in _faults(block, known)]
    if faults:
        raise UsageError(f"{path}:", faults)
    if all(block.get(LAYER) for block in data["blocks"]):
        raise UsageError(f"{path} drops every block")
    return tuple({name: float(share) for name, share in block.items()} for block in data["blocks"])


def write_blocks(path: Path, blocks: Sequence[Mapping[str, float]]) -> None:
    """Write what `read_blocks` reads."""
    rows = ",\n".join(f"  {json.dumps(dict(block))}" for block in blocks)
    path.write_text(f'{{"schema": {SCHEMA}, "blocks": [\n{rows}\n]}}\n')


def _faults(block: Any, known: Sequence[str]) -> list[str]:
    if not isinstance(block, dict):
        return [f"must be patterns with their shares, got {block!r}"]
    faults = []
    for name, share in block.items():
        if name not in known:
            faults.append(f"there is no {name!r} (known: {', '.join(known)})")
        elif isinstance(share, str | list | dict) or share is None:
            faults.append(f"{name} must be a number, got {share!r}")
        elif name in GO and share not in (0, 1):
            faults.append(f"{name} goes (1) or stays (0), got {share!r}")
        elif name not in GO and not 0 <= share < 1:
            faults.append(f"{name}: the fraction that goes must be at least 0 and less than 1, got {share!r}")
    return faults
