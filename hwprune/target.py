"""A target: device + runtime + precision, read from profiles/*.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hwprune.errors import UnknownNameError
from hwprune.files import read_toml

SCHEMA = 1


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
        roofline: figures with their sources; not used for anything that is called measured.
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
        return self.reasons.get(pattern) or self.reasons.get(family) or "the target's profile does not list it"


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
    elif name in (known := names()):
        path = Path(str(_folder() / f"{name}.toml"))
    else:
        raise UnknownNameError("target", name, known, "Or give the path of a profile, NAME.toml.")
    table = read_toml(path)
    if table.integer("schema") != SCHEMA:
        table.fault("schema", f"must be {SCHEMA}")
    multiple = table.free("channel_multiple")
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in multiple.values()):
        table.fault("channel_multiple", f"must map names to whole numbers >= 1, got {multiple!r}")
    if "default" not in multiple:
        table.fault("channel_multiple", "needs the key 'default'")
    reasons = table.free("not_executed")
    target = Target(
        name=path.stem,
        description=table.text("description"),
        device=table.text("device", choices=("cpu", "cuda")),
        device_match=table.texts("device_match", []),
        runtime=table.text("runtime"),
        precision=table.text("precision", choices=("fp32", "fp16", "bf16", "int8")),
        threads=table.integer("threads", 1, low=1),
        executes=table.texts("executes"),
        reasons={key: str(value) for key, value in reasons.items()},
        channel_multiple=multiple,
        options=table.free("options"),
        roofline=table.free("roofline"),
    )
    table.finish()
    return target
