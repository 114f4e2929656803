"""Reading manifest.json of an export, with everything that is wrong with it told at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.common.files import read_json
from hwprune.deploy import quantise
from hwprune.deploy.formats import FORMATS
from hwprune.errors import UsageError

LARGEST_TOLERANCE = max(precision.tolerance for precision in quantise.PRECISIONS.values())
"""The most that hwprune writes as the difference that outputs may have: a manifest that allows anything proves nothing."""
_MOST = 20
"""Faults that are listed."""
_SOURCES = ("measured", "table", "estimated")
_N_OF_M = re.compile(r"[1-9][0-9]?:[1-9][0-9]?")


@dataclass(frozen=True, slots=True)
class _Key:
    """One value that verifying reads, with the keys that lead to it and what it must be."""

    path: str
    holds: Callable[[Any], bool]
    words: str
    optional: bool = False

    def faults(self, manifest: dict[str, Any]) -> Iterator[str]:
        value: Any = manifest
        for depth, key in enumerate(parts := self.path.split(".")):
            if not isinstance(value, dict):
                yield f"{'.'.join(parts[:depth])} must be a table, got {_short(value)}"
                return
            if key not in value:
                if not self.optional:
                    yield f"{self.path} is missing"
                return
            value = value[key]
        if not self.holds(value):
            yield f"{self.path} must be {self.words}, got {_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def _is_metric(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _is_number(value.get("value")))


def _is_n_of_m(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _N_OF_M.fullmatch(pattern) and isinstance(weights, list) and all(map(_is_text, weights))
        for pattern, weights in value.items()
    )


_ALWAYS = (
    _Key("format", _is_text, "a text"),
    _Key("files", lambda v: isinstance(v, dict) and all(map(_is_text, v.values())), "a table of file names and SHA-256 digests"),
)
_WHAT_RUNS = (
    _Key("workload.metric", _is_text, "a text"),
    _Key("target.name", _is_text, "a text"),
    _Key("target.profile", lambda v: v is None or _is_table(v), "a table or null", optional=True),
    _Key("fingerprint.identity", _is_table, "a table"),
    _Key("point.speedup.value", lambda v: _is_number(v) and v > 0, "a number > 0"),
    _Key("latency_source", lambda v: v in _SOURCES, f"one of {', '.join(_SOURCES)}", optional=True),
    _Key("samples.metric", _is_metric, "a table with a number as value, or null", optional=True),
    _Key(
        "tolerance", lambda v: _is_number(v) and 0 <= v <= LARGEST_TOLERANCE,
        f"a number between 0 and {LARGEST_TOLERANCE:g}", optional=True,
    ),
    _Key("layout.zeros", lambda v: _is_table(v) and all(map(_is_number, v.values())), "a table of weights and shares",
         optional=True),
    _Key("layout.n_of_m", _is_n_of_m, "a table of patterns N:M and lists of weights", optional=True),
)  # fmt: skip
"""What is read besides when the format has a file that a runtime runs."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export folder; what `hwprune verify` reads of it is there and has its type.

    Raises:
        UsageError: it can't be read, is of another schema, or keys are missing or hold something else; all are named.
    """
    path = folder / "manifest.json"
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != 1:
        raise UsageError(f"{path} is not a manifest of schema 1")
    form = manifest.get("format")
    runs = isinstance(form, str) and form in FORMATS and FORMATS[form].runs is not None
    keys = (*_ALWAYS, *(_WHAT_RUNS if runs else ()))
    faults = list(dict.fromkeys(fault for key in keys for fault in key.faults(manifest)))
    if faults:
        raise UsageError(f"{path} is not as `hwprune export` writes it; export the point again:", faults[:_MOST])
    return manifest
