"""Reading manifest.json of an export, with everything that is wrong with it told at once.

What it must hold is in ``manifest.schema.json`` beside this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwprune.common import json_schema
from hwprune.common.files import read_json
from hwprune.errors import UsageError

_MOST = 20
"""Faults that are listed."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export folder; what `hwprune verify` reads of it is there and has its type.

    Raises:
        UsageError: it can't be read, is of another schema, or keys are missing or hold something else; all are named.
    """
    path = folder / "manifest.json"
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != 1:
        raise UsageError(f"{path} is not a manifest of schema 1")
    if faults := json_schema.faults(manifest, "hwprune.deploy", "manifest.schema.json"):
        raise UsageError(f"{path} is not as `hwprune export` writes it; export the point again:", faults[:_MOST])
    return manifest
