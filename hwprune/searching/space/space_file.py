"""Search space files: TOML in, checked."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hwprune import patterns
from hwprune.common.files import read_toml
from hwprune.errors import UnknownNameError, UsageError
from hwprune.methods import method

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SpaceFile:
    """A search_spaces/NAME.toml.

    Attributes:
        roles: axes of these roles may be cut.
        patterns: mask patterns that matrices may take, as far as the target executes them.
        criteria: how to choose what stays.
        levels: largest number of keep levels of an axis.
        max_sparsity: largest sparsity of an axis.
        mask_sparsities: levels of mask patterns that don't fix theirs.
        exclude: units left dense, names or globs.
        tie: units of repeated blocks share one decision.
        fixed_length: tokens may go in a model that takes any number of them, which then takes as many as the example inputs have.
    """

    name: str
    description: str
    roles: tuple[str, ...]
    patterns: tuple[str, ...]
    criteria: tuple[str, ...]
    levels: int
    max_sparsity: float
    mask_sparsities: tuple[float, ...]
    exclude: tuple[str, ...]
    tie: bool = False
    fixed_length: bool = False


def names() -> list[str]:
    """Names of the spaces that come with hwprune."""
    folder = resources.files("hwprune.search_spaces")
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def searching(roles: Set[str]) -> str | None:
    """The shipped space to take for axes of these roles: `default` if it will do; None if none has them all."""
    for name in sorted(names(), key=lambda name: name != "default"):
        if roles <= set(load(name).roles):
            return name
    return None


def load(name: str) -> SpaceFile:
    """A space by name, or by path if it ends in ``.toml``. Raises `UsageError` with all faults of the file."""
    if name.endswith(".toml"):
        path = Path(name)
    elif name in (known := names()):
        path = Path(str(resources.files("hwprune.search_spaces") / f"{name}.toml"))
    else:
        raise UnknownNameError("search space", name, known, "Or give the path of a space, NAME.toml.")
    table = read_toml(path)
    if table.integer("schema") != SCHEMA:
        table.fault("schema", f"must be {SCHEMA}")
    masks = table.texts("patterns")
    for pattern in masks:
        try:
            if patterns.is_axis(patterns.get(pattern).name):
                table.fault("patterns", f"{pattern!r} is chosen by roles, not by patterns")
        except UsageError as error:
            table.fault("patterns", str(error))
    chosen = table.texts("criteria", choices=method.METHODS)
    if not chosen:
        table.fault("criteria", "needs at least one")
    space = SpaceFile(
        name=path.stem,
        description=table.text("description", ""),
        roles=table.texts("roles", choices=[*patterns.AXIS_PATTERNS, patterns.BRANCH]),
        patterns=masks,
        criteria=chosen,
        levels=table.integer("levels", 8, low=1, high=1000),
        max_sparsity=table.number("max_sparsity", 0.9, low=0.01, high=0.999),
        mask_sparsities=table.numbers("mask_sparsities", [0.5], low=0.01, high=0.999),
        exclude=table.texts("exclude", []),
        tie=table.boolean("tie", False),
        fixed_length=table.boolean("fixed_length", False),
    )
    if not space.roles and not space.patterns:
        table.fault("roles", "roles and patterns are both empty: nothing to search")
    table.finish()
    return space
