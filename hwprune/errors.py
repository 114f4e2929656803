"""Every error hwprune raises on purpose.

HwpruneError
|-- UsageError               the user's command, file or object is wrong: exit code 2
|   |-- WorkloadError        what the workload brings can't be used
|   |-- UnknownNameError     a name that no table holds: lists the choices and the nearest
|   `-- UnavailableError     a runtime, device or package that this machine doesn't have
|-- TraceError               torch.export could not trace the model
|-- RunError                 the run itself failed: exit code 1
`-- CandidateFailure         one candidate failed: becomes a failed trial, never ends a search

HwpruneWarning               something that ends nothing, and that the user should know of
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence


class HwpruneError(Exception):
    """Base class: catch this to catch everything hwprune raises on purpose.

    Ctrl-C while PyTorch exports a model comes out as another error (``TypeError: ... KeyboardInterrupt``). Whoever makes one of
    ours of it would tell the user that the model can't be exported, so it becomes the interrupt again.

    Raises:
        KeyboardInterrupt: the error that is being handled was one.
    """

    def __init__(self, *arguments: object) -> None:
        if was_interrupted(sys.exception()):
            raise KeyboardInterrupt
        super().__init__(*arguments)


def was_interrupted(error: BaseException | None) -> bool:
    """Does an error come from Ctrl-C, by its causes or by what its text says?"""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt:" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class HwpruneWarning(UserWarning):
    """hwprune's own warnings: the command line shows them, and keeps those of libraries quiet."""


class UsageError(HwpruneError):
    """Wrong usage or configuration. ``faults`` holds every fault found, not only the first."""

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        self.faults = tuple(faults) or (message,)
        text = message
        if faults:
            text = message + "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(text)


class WorkloadError(UsageError):
    """The workload (model, data, metric or the function that makes them) can't be used."""


class UnknownNameError(UsageError):
    """A name that no table holds."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], hint: str = "") -> None:
        known = sorted(choices)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        extra = f" {hint}" if hint else ""
        super().__init__(f"unknown {kind} {name!r}.{guess} Choices: {', '.join(known)}.{extra}")


class UnavailableError(UsageError):
    """Something that exists, but not on this machine."""


class TraceError(HwpruneError):
    """``torch.export`` could not trace the model."""


class RunError(HwpruneError):
    """A run that can't go on although the command was right."""


class CandidateFailure(HwpruneError):  # noqa: N818 - the field says a candidate fails
    """One candidate could not be made, exported, run or measured.

    ``stage`` is one of ``prune``, ``export``, ``convert``, ``run``, ``parity``, ``evaluate``, ``measure``.
    """

    def __init__(self, stage: str, reason: str) -> None:
        self.stage = stage
        self.reason = reason
        super().__init__(f"{stage}: {reason}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a sentence; the class's name where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def described(error: BaseException) -> str:
    """The class and the first line of an error's text, ``"KeyError: 'width'"``; the class alone where it has no text."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
