"""A target: device + runtime + precision, read from profiles/*.toml."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hwprune.common.files import Table, read_toml
from hwprune.errors import UnknownNameError
from hwprune.structure.borders import FORMS

SCHEMA = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ISAS = ("default", "avx512", "avx2", "neon")
KNOWN = (
    "channel", "head", "head_dim", "neuron", "hidden", "group", "expert", "branch", "unstructured", "N:M", "block", "2:4",
)  # fmt: skip
"""Patterns and families of patterns that a profile may name."""
ROOFLINE = (
    *(f"{precision}_flops" for precision in PRECISIONS), "vector_flops", "bandwidth_bytes_per_s", "launch_s", "multiprocessors",
    "tiles", "two_four_speedup",
)  # fmt: skip
"""Figures of a roofline; peaks are dense, in operations per second (a multiply-accumulate is two)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One deployment target.

    Attributes:
        name: file name without ``.toml``.
        description: one line.
        device: ``cpu`` or ``cuda``; what must be there to measure.
        device_match: texts of which one must occur in the name the driver reports; empty: any.
        runtime: name in the runtime table.
        precision: ``fp32``, ``fp16``, ...
        threads: intra-op threads of a CPU runtime.
        executes: patterns that the device can execute faster than dense, as far as is known.
        reasons: pattern -> why it is not among them.
        channel_multiple: ISA or ``default`` -> sizes that the kernels like are multiples of this.
        options: passed to the runtime.
        roofline: name -> {"value", "source"}; not used for anything that is called measured.
        compute_capability: of an NVIDIA device, 89 for 8.9; 0: not said.
    """

    name: str
    description: str
    device: str
    device_match: tuple[str, ...]
    runtime: str
    precision: str
    threads: int
    executes: tuple[str, ...]
    reasons: Mapping[str, str]
    channel_multiple: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    roofline: Mapping[str, Any] = field(default_factory=dict)
    compute_capability: int = 0

    def matches(self, device: str) -> bool:
        """Is this the name, as a driver reports it, of a device that the profile describes?

        Whole words decide: "NVIDIA L40S" is no L4. A text that starts with "!" must not occur.
        """
        words = device.lower()
        wanted = [text for text in self.device_match if not text.startswith("!")]
        never = [text[1:] for text in self.device_match if text.startswith("!")]
        hit = not wanted or any(re.search(rf"(?<![a-z0-9]){re.escape(text.lower())}(?![a-z0-9])", words) for text in wanted)
        return hit and not any(text.lower() in words for text in never)

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` takes them back."""
        return {**asdict(self), "reasons": dict(self.reasons), "channel_multiple": dict(self.channel_multiple)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**values)

    def multiple(self, isa: str) -> int:
        """Channel multiple on a device with this instruction set."""
        return int(self.channel_multiple.get(isa, self.channel_multiple["default"]))

    def why_not(self, pattern: str) -> str | None:
        """Why the pattern is not expected to pay here, or None if it is."""
        if pattern in self.executes:
            return None
        family = "N:M" if ":" in pattern and pattern.split(":", maxsplit=1)[0].isdigit() else pattern.split(":", maxsplit=1)[0]
        if family in self.executes:
            return None
        reason = self.reasons.get(pattern) or self.reasons.get(family)
        if pattern in FORMS:  # operators that every runtime has, on smaller tensors behind: what it brings is measured
            return reason
        return reason or "the target's profile does not list it"


def names() -> list[str]:
    """Names of the profiles that come with hwprune."""
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def _folder() -> Any:
    return resources.files("hwprune.profiles")


def load(name: str) -> Target:
    """A profile by name, or by path if it ends in ``.toml``.

    Raises:
        UnknownNameError: no such profile; lists the choices.
        UsageError: the file has faults; all of them are told.
    """
    if name.endswith(".toml"):
        path = Path(name)
    elif name in (profiles := names()):
        path = Path(str(_folder() / f"{name}.toml"))
    else:
        raise UnknownNameError("target", name, profiles, "Or give the path of a profile, NAME.toml.")
    table = read_toml(path)
    if table.integer("schema") != SCHEMA:
        table.fault("schema", f"must be {SCHEMA}")
    multiple = table.free("channel_multiple")
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in multiple.values()):
        table.fault("channel_multiple", f"must map names to whole numbers >= 1, got {multiple!r}")
    for key in multiple:
        if key not in ISAS:
            table.fault("channel_multiple", f"has the key {key!r}; known are {', '.join(ISAS)}")
    executes = table.texts("executes")
    for entry in executes:
        if entry not in KNOWN and not re.fullmatch(r"\d+:\d+(:permuted)?|block:\d+x\d+|unstructured:row", entry):
            table.fault("executes", f"names {entry!r}, which is no pattern; known are {', '.join(KNOWN)}, N:M and block:RxC")
    if "default" not in multiple:
        table.fault("channel_multiple", "needs the key 'default'")
    reasons = table.free("not_executed")
    target = Target(
        name=path.stem,
        description=table.text("description"),
        device=table.text("device", choices=("cpu", "cuda")),
        device_match=table.texts("device_match", []),
        runtime=table.text("runtime"),
        precision=table.text("precision", choices=PRECISIONS),
        threads=table.integer("threads", 1, low=1),
        executes=executes,
        reasons={key: str(value) for key, value in reasons.items()},
        channel_multiple=multiple,
        options=table.free("options"),
        roofline=_roofline(table),
        compute_capability=table.integer("compute_capability", 0, low=0),
    )
    table.finish()
    return target


def _roofline(table: Table) -> dict[str, Any]:
    """``name = {value = ..., source = "..."}``: a figure without a source is a fault."""
    figures = {}
    for name, entry in table.free("roofline").items():
        where = f"roofline.{name}"
        if name not in ROOFLINE:
            near = difflib.get_close_matches(name, ROOFLINE, n=1)
            table.fault(where, f"is not a figure of a roofline{f'; did you mean {near[0]}?' if near else ''}")
        elif not isinstance(entry, dict) or set(entry) != {"value", "source"} or not str(entry["source"]).strip():
            table.fault(where, 'must be {value = ..., source = "..."}')
        elif not _figure(name, entry["value"]):
            table.fault(where, f"must be {'a list of [rows, columns, inner] sizes' if name == 'tiles' else 'a number > 0'}")
        else:
            figures[name] = entry
    return figures


def _figure(name: str, value: Any) -> bool:
    if name != "tiles":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return (
        bool(value)
        and isinstance(value, list)
        and all(
            isinstance(tile, list) and len(tile) == 3 and all(type(size) is int and size >= 1 for size in tile) for tile in value
        )
    )
