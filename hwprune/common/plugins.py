"""Criteria, patterns and runtimes that other packages register, under the entry-point groups ``hwprune.criteria``,
``hwprune.patterns`` and ``hwprune.runtimes``.

An entry point names a class that takes no arguments, or an object. It is known by the object's own ``name``, and only looked
for where a name is none of hwprune's.
"""

from __future__ import annotations

import functools
from importlib import metadata
from typing import Any

from hwprune.errors import UsageError

GROUPS = ("hwprune.criteria", "hwprune.patterns", "hwprune.runtimes")


@functools.cache
def found(group: str, kind: type[Any]) -> dict[str, Any]:
    """Name -> object of everything that is registered under a group.

    Args:
        kind: what each must be an instance of.

    Raises:
        UsageError: an entry point can't be loaded, is something else, or two have one name.
    """
    objects: dict[str, Any] = {}
    for entry in metadata.entry_points(group=group):
        where = f"entry point {entry.name!r} of group {group}" + (f" (package {entry.dist.name})" if entry.dist else "")
        try:
            loaded = entry.load()
            plugin: Any = loaded() if isinstance(loaded, type) else loaded
        except Exception as error:  # other people's code may raise anything
            raise UsageError(f"{where} can't be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(plugin, kind):
            raise UsageError(f"{where} is no hwprune {kind.__name__}: got {type(plugin).__name__}")
        if plugin.name in objects:
            raise UsageError(f"{where}: the name {plugin.name!r} is taken by another entry point")
        objects[plugin.name] = plugin
    return objects
