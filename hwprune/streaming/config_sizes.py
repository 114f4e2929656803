"""The configuration of a class that has given shapes, found by trying what each of its numbers changes.

No names of layers are needed: the class is made without weights once for each number of its configuration, with that number
doubled. The dims that double with it are proportional to it, and so tell its new value.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from hwprune.errors import UsageError, described
from hwprune.streaming import folder

Shapes = Mapping[str, tuple[int, ...]]

SIZES = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size",
    "num_attention_heads", "n_head", "num_heads", "n_heads", "num_key_value_heads", "n_kv_heads", "head_dim", "kv_channels",
)  # fmt: skip
"""Numbers of configurations that are sizes of layers."""
WIDTHS_OF_HEADS = ("head_dim", "kv_channels")
COUNTS_OF_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "num_key_value_heads", "n_kv_heads")
WIDTHS = ("hidden_size", "n_embd", "d_model")
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Names for the number of blocks."""


def with_depth(config: Any, kept: list[int]) -> Any:
    """The configuration of a model that has kept these blocks.

    Raises:
        UsageError: the configuration does not say how many blocks there are.
    """
    found = copy.deepcopy(config)
    name = next((name for name in DEPTHS if getattr(config, name, None)), None)
    if name is None:
        raise UsageError(f"{type(config).__name__} does not say how many blocks there are: its blocks can't be dropped")
    kinds = getattr(config, "layer_types", None)
    setattr(found, name, len(kept))
    if uneven := getattr(config, folder.UNEVEN, None):
        of_kept = {key: [uneven[key][index] for index in kept] for key in ("shapes", "gone")}
        setattr(found, folder.UNEVEN, {**uneven, **of_kept})
    if kinds:
        with contextlib.suppress(AttributeError):  # computed from other numbers
            found.layer_types = [kinds[index] for index in kept]
    return found


def fitted(kind: Any, config: Any, wanted: Shapes) -> Any:
    """The configuration with which ``kind`` has the wanted shapes.

    Args:
        config: the one of before the cut, with the number of blocks of after it.
        wanted: name of each parameter -> its shape.

    Raises:
        UsageError: there is none: layers of one kind keep different sizes, or the class derives a size from another.
    """
    config = _explicit_sizes(kind, _explicit_heads(kind, copy.deepcopy(config)))
    before = _shapes(kind, config)
    wanted = {name: shape for name, shape in wanted.items() if name in before}  # buffers are the class's own
    doubled: dict[str, Shapes] = {}
    first: UsageError | None = None
    # A class may have sizes of other names, such as those of its experts: where the usual ones do not do, all numbers are tried.
    for names in (SIZES, _other_numbers(config)):
        doubled |= {name: after for name in names if (after := _doubled(kind, config, name)) not in (None, before)}
        # The rows of a query projection are heads times their size: fewer of the one or of the other look alike.
        for fixed in (WIDTHS_OF_HEADS, COUNTS_OF_HEADS):
            try:
                return _solved(kind, config, before, {k: after for k, after in doubled.items() if k not in fixed}, wanted)
            except UsageError as error:
                first = first or error
    assert first is not None
    raise first


def _other_numbers(config: Any) -> list[str]:
    """The names of a configuration's own numbers that may be sizes."""
    known = {*SIZES, *DEPTHS, "vocab_size"}
    return [name for name, value in config.to_dict().items() if isinstance(value, int) and value > 1 and name not in known]


def followers_of_width(kind: Any, config: Any) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The hidden width, and name of each parameter -> its dims that are the width, found by doubling it.

    Raises:
        UsageError: the class has no such number, or makes other sizes of it, too, as GPT-2 does of its queries, keys and values.
    """
    config = _explicit_sizes(kind, _explicit_heads(kind, copy.deepcopy(config)))
    name = next((name for name in WIDTHS if isinstance(getattr(config, name, None), int)), None)
    after = None if name is None else _doubled(kind, config, name)
    if name is None or after is None:
        raise UsageError(f"{kind.__name__} has no hidden width that can be changed")
    size, found = getattr(config, name), {}
    for key, shape in _shapes(kind, config).items():
        changed = tuple(dim for dim, (old, new) in enumerate(zip(shape, after[key], strict=True)) if old != new)
        # A matrix that has it in both dims makes heads of it.
        if len(changed) > 1 or any(shape[dim] != size or after[key][dim] != 2 * size for dim in changed):
            raise UsageError(
                f"{kind.__name__} makes other sizes of its {name}, too ({key} would follow): its hidden width can't be cut alone"
            )
        if changed:
            found[key] = changed
    return size, found


def _doubled(kind: Any, config: Any, name: str) -> Shapes | None:
    """The shapes with one number doubled; None: the class has no such number, or does not allow that."""
    old = getattr(config, name, None)
    if not isinstance(old, int) or isinstance(old, bool):
        return None
    changed = copy.deepcopy(config)
    try:
        setattr(changed, name, 2 * old)
        return _shapes(kind, changed)
    except Exception:  # classes raise what they like about sizes
        return None


def _solved(kind: Any, config: Any, before: Shapes, doubled: Mapping[str, Shapes], wanted: Shapes) -> Any:
    new: dict[str, int] = {}
    for name, after in doubled.items():
        values = _values(before, after, wanted, getattr(config, name))
        if len(values) > 1:
            raise UsageError(
                f"{name} would have to be {' and '.join(map(str, sorted(values)))}: the layers keep different sizes, or "
                f"{kind.__name__} makes several of its sizes of this one number"
            )
        if values:
            new[name] = values.pop()
    found = copy.deepcopy(config)
    try:
        for name, value in new.items():
            setattr(found, name, value)
        for name in doubled:
            rest = None if name in new else _by_rest(kind, found, name, wanted)
            if rest is not None:
                setattr(found, name, rest)
                new[name] = rest
        made = _shapes(kind, found)
        type(found).from_dict(found.to_dict())  # classes check what they read, and not what is set
    except Exception as error:  # the class may raise anything about sizes that don't fit
        raise UsageError(f"{kind.__name__} has no configuration with the new sizes ({new}): {described(error)}") from error
    if wrong := [name for name in wanted if made.get(name) != tuple(wanted[name])]:
        name = wrong[0]
        raise UsageError(
            f"{kind.__name__} has no configuration with the new sizes: {name} would be {made.get(name)}, not "
            f"{tuple(wanted[name])}"
        )
    return found


def _values(before: Shapes, after: Shapes, wanted: Shapes, old: int) -> set[int]:
    """What the number must be, by every dim that follows it alone; where it must not be whole, the shapes will not fit."""
    found: set[int] = set()
    for name, shape in before.items():
        if name not in wanted:
            continue
        for size, double, now in zip(shape, after[name], wanted[name], strict=True):
            if double == 2 * size:
                found.add(round(now * old / size))
    return found


def _by_rest(kind: Any, config: Any, name: str, wanted: Shapes) -> int | None:
    """What a number must be whose dims hold others too, such as queries, keys and values in one matrix; None: nothing tells."""
    old = getattr(config, name)
    before, after = _shapes(kind, config), _doubled(kind, config, name)
    if after is None:
        return None
    values = {
        old * (now - size) / (double - size) + old
        for key in before.keys() & wanted.keys()
        for size, double, now in zip(before[key], after[key], wanted[key], strict=True)
        if double != size
    }
    return int(value) if len(values) == 1 and (value := values.pop()) == int(value) and value > 0 else None


def _explicit_sizes(kind: Any, config: Any) -> Any:
    """With the numbers written down that the class derives from others where they are None, such as GPT-2's ``n_inner``."""
    for name in SIZES:
        if not hasattr(config, name) or getattr(config, name) is not None:
            continue
        before = _shapes(kind, config)
        for size in sorted({size for shape in before.values() for size in shape}):
            explicit = copy.deepcopy(config)
            try:
                setattr(explicit, name, size)
                fits = _shapes(kind, explicit) == before
            except Exception:  # classes raise what they like about sizes
                fits = False
            if fits and _doubled(kind, explicit, name) not in (None, before):
                config = explicit
                break
    return config


def _explicit_heads(kind: Any, config: Any) -> Any:
    """With head_dim written down, so that it stays what it is when heads or hidden width change."""
    if getattr(config, "head_dim", None) is None and hasattr(config, "num_attention_heads"):
        explicit = copy.deepcopy(config)
        explicit.head_dim = config.hidden_size // config.num_attention_heads
        if _shapes(kind, explicit) == _shapes(kind, config):
            return explicit
    return config


def _shapes(kind: Any, config: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in folder.bare(kind, config).named_parameters(remove_duplicate=False)}
