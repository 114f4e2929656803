"""The target of a run, as it was when the run was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwprune.errors import UsageError
from hwprune.records import target as targets
from hwprune.records.target import Target


def profile(data: Mapping[str, Any]) -> Target:
    """The target as it was resolved when the run was made, whatever a profile of that name says today. Raises `UsageError`."""
    stored = data["target"].get("profile")
    if stored is None:
        return targets.load(data["target"]["name"])
    try:
        return Target.from_json(stored)
    except TypeError as error:
        raise UsageError(f"the record's target profile has faults: {error}") from error
