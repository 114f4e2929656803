"""Holding a file against its JSON Schema, with everything that is wrong told at once and in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

_LARGEST = 1e300
"""No number of ours is larger: what is would overflow in the next product."""
_NOUNS = {
    "string": "a text", "number": "a number", "integer": "a whole number", "object": "a table", "array": "a list",
    "boolean": "true or false", "null": "null",
}  # fmt: skip


def faults(data: Any, package: str, name: str) -> list[str]:
    """Everything that is wrong, as ``place must be ..., got ...``; empty: nothing.

    Args:
        data: parsed JSON.
        package: where the schema lies, such as ``hwprune.records``.
        name: the schema's file name.
    """
    return list(dict.fromkeys(line for error in _validator(package, name).iter_errors(data) for line in _told(error)))


@cache
def _validator(package: str, name: str) -> Any:
    import jsonschema

    schema = json.loads((resources.files(package) / name).read_text())
    types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_whole})
    return jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=types)(schema)


def _is_number(_checker: Any, value: Any) -> bool:
    """JSON of Python may hold NaN, infinities and whole numbers without end."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST and math.isfinite(value)


def _is_whole(_checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**62


def _told(error: Any) -> Iterator[str]:
    place = _place(error.absolute_path)
    got = f"got {_short(error.instance)}"
    wanted = error.validator_value
    if error.validator == "required":
        for key in wanted:
            if key not in error.instance:
                yield f"{place + '.' if place else ''}{key} is missing"
        return
    if error.validator == "type":
        nouns = [_NOUNS[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted)]
        yield f"{place} must be {' or '.join(nouns)}, {got}"
    elif error.validator in ("enum", "const"):
        choices = wanted if error.validator == "enum" else [wanted]
        yield f"{place} must be {'one of ' * (len(choices) > 1)}{', '.join(map(str, choices))}, {got}"
    elif error.validator == "exclusiveMinimum":
        yield f"{place} must be > {wanted:g}, {got}"
    elif error.validator in ("minimum", "maximum"):
        yield f"{place} must be {'>=' if error.validator == 'minimum' else '<='} {wanted:g}, {got}"
    elif error.validator == "anyOf":
        # The alternatives here are something and null: what is wrong with the something is what helps.
        yield from dict.fromkeys(line for inner in error.context if inner.validator != "type" for line in _told(inner))
        if all(inner.validator == "type" for inner in error.context):
            yield f"{place} must be {' or '.join(_NOUNS[inner.validator_value] for inner in error.context)}, {got}"
    else:
        yield f"{place}: {_short(error.instance)} does not match {_short(wanted)}"


def _place(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(text)}{part}"
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
