"""Prompts and single tokens, measured apart: at equal size, cuts that speed up the one hardly touch the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwprune import runtimes
from hwprune.common import formatting
from hwprune.errors import RunError, UsageError
from hwprune.latency import fresh
from hwprune.latency.availability import missing
from hwprune.latency.bench import Bench
from hwprune.latency.interval import process_interval
from hwprune.records.measurement import Measurement
from hwprune.records.target import Target

Inputs = Callable[[int, int, int], list[np.ndarray[Any, Any]]]
"""(batch, new tokens, earlier tokens) -> what a file takes."""
PREFILL, DECODE = "prefill", "decode"
PROGRAM = ".pt2"
LIMIT_S, FEWEST = 0.5, 3
"""Seconds of one measurement, and quads of runs however long they take: a prompt takes a second, where the runs that `fresh` is
made for take less than a millisecond. What is told is the spread between processes, not that within one."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is asked of the model.

    Attributes:
        prompt, new: tokens that go in at once, and those that are generated after them, one by one.
        batch: texts at a time.
    """

    prompt: int = 128
    new: int = 64
    batch: int = 1

    @classmethod
    def parse(cls, text: str) -> Tokens:
        """``128+64``. Raises `UsageError`."""
        prompt, plus, new = text.partition("+")
        if not plus or not (prompt.isdecimal() and new.isdecimal()) or min(int(prompt), int(new)) < 1:
            raise UsageError(f"--tokens takes PROMPT+NEW, such as 128+64, got {text!r}")
        return cls(int(prompt), int(new))

    @property
    def past(self) -> int:
        """Tokens before the one that is timed: the middle of what is generated."""
        return self.prompt + self.new // 2


def runs_programs(target: Target) -> bool:
    """Is it PyTorch?"""
    return runtimes.get(target.runtime).file.endswith(PROGRAM)


def check_target(target: Target, tokens: Tokens | None, positions: int | None) -> None:
    """Can files with a cache be run on it here, with so many tokens? To be asked before anything takes long.

    Args:
        tokens: None: nothing is measured.
        positions: that the model has; None: any number.

    Raises:
        UsageError: why not.
    """
    if Path(runtimes.get(target.runtime).file).suffix not in (".onnx", PROGRAM):
        told = f"{target.runtime} ({target.name}) does not run"
        raise UsageError(f"a language model is measured as an ONNX file or a {PROGRAM} program, which {told}")
    if tokens is not None and positions is not None and tokens.prompt + tokens.new > positions:
        raise UsageError(f"--tokens {tokens.prompt}+{tokens.new} is more than the {positions} positions of this model")
    if reasons := missing(target):
        raise UsageError(f"{target.name} can't be measured here:", reasons)


@dataclass(frozen=True, slots=True)
class Phases:
    """A model's two latencies beside the dense one's.

    Attributes:
        prefill, decode: seconds of the prompt, and of one token in the middle of what is generated.
        prefill_speedup, decode_speedup: dense latency / latency, each with the interval of fresh processes.
        same_prefill, same_decode: the dense model against itself.
    """

    tokens: Tokens
    prefill: Measurement
    decode: Measurement
    prefill_speedup: Measurement
    decode_speedup: Measurement
    same_prefill: Measurement
    same_decode: Measurement

    @property
    def answer_s(self) -> float:
        """Seconds of a whole answer: the prompt, and then every token at the price of the middle one."""
        return self.prefill.value + self.tokens.new * self.decode.value

    @property
    def answer_speedup(self) -> float:
        """Dense seconds of the whole answer over these."""
        dense = self.prefill.value * self.prefill_speedup.value
        return (dense + self.tokens.new * self.decode.value * self.decode_speedup.value) / self.answer_s

    def to_json(self) -> dict[str, object]:
        """For machines."""
        return {
            "prompt": self.tokens.prompt, "new": self.tokens.new, "past": self.tokens.past, "batch": self.tokens.batch,
            PREFILL: self.prefill.to_json(), DECODE: self.decode.to_json(),
            "prefill_speedup": self.prefill_speedup.to_json(), "decode_speedup": self.decode_speedup.to_json(),
            "same_prefill": self.same_prefill.to_json(), "same_decode": self.same_decode.to_json(),
            "answer_s": self.answer_s, "answer_speedup": self.answer_speedup,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Phases:
        """What `to_json` made."""
        names = (PREFILL, DECODE, "prefill_speedup", "decode_speedup", "same_prefill", "same_decode")
        asked = Tokens(data["prompt"], data["new"], data["batch"])
        return cls(asked, *(Measurement(**data[name]) for name in names))

    def text(self) -> list[str]:
        """A line for each phase, and one for the whole answer."""
        lines = []
        for name, latency, speedup, tokens in (
            (f"Prompt of {self.tokens.prompt} tokens", self.prefill, self.prefill_speedup, self.tokens.prompt),
            (f"Next token after {self.tokens.past}", self.decode, self.decode_speedup, 1),
        ):
            rate = self.tokens.batch * tokens / latency.value
            times = formatting.speedup(speedup.value, speedup.ci_low, speedup.ci_high)
            lines.append(f"{name}: {times}, {formatting.seconds(latency.value)} ({rate:.0f} tokens a second)")
        asked = f"{self.tokens.prompt} tokens in, {self.tokens.new} out"
        lines.append(f"Whole answer ({asked}): {self.answer_speedup:.2f}x, {formatting.seconds(self.answer_s)}")
        return lines


def measure(
    dense: tuple[Path, Inputs],
    pruned: tuple[Path, Inputs],
    target: Target,
    tokens: Tokens,
    step: Callable[[str], None] = lambda _text: None,
) -> Phases:
    """Both phases of two files, in fresh processes, paired.

    Args:
        dense, pruned: a file that the target's runtime takes, and what goes into it.

    Raises:
        RunError: a file can't be measured.
    """
    found: dict[str, dict[str, fresh.Remeasured]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for phase, count, past in ((PREFILL, tokens.prompt, 0), (DECODE, 1, tokens.past)):
            step(f"measuring {phase}")
            examples = {}
            for key, (_, inputs) in (("dense", dense), ("model", pruned)):
                examples[key] = write_inputs(inputs(tokens.batch, count, past), Path(scratch) / f"{phase}-{key}.npz")
            with Bench(target) as bench:
                settings = replace(fresh.settings_for(bench.clock), limit_s=LIMIT_S, fewest_quads=FEWEST)
            found[phase] = fresh.remeasure({"model": pruned[0]}, dense[0], examples, lambda: Bench(target), settings)
            if "model" not in found[phase] or "dense" not in found[phase]:
                raise RunError(f"{phase} can't be measured on {target.name}: {pruned[0]} fails there")
    same = {phase: found[phase]["dense"].speedup for phase in found}
    first, second = (beside_copies(found[phase]["model"], same[phase]) for phase in (PREFILL, DECODE))
    return Phases(tokens, first.latency, second.latency, first.speedup, second.speedup, same[PREFILL], same[DECODE])


def beside_copies(found: fresh.Remeasured, same: Measurement) -> fresh.Remeasured:
    """A model beside a copy of the dense one that was loaded as it was, process by process.

    Who is loaded first in a process gets other memory, which single tokens feel: in six processes SmolLM2's dense file was 0.93
    to 1.10 times as fast as itself, by turns, and a pruned one was off by the same. A process' own copy takes that out.

    Args:
        same: the dense model against itself, in the same processes.
    """
    models, copies = (one.conditions.get("speedups", ()) for one in (found.speedup, same))
    if not copies or len(models) != len(copies):
        return found
    ratio, low, high = process_interval([model / copy for model, copy in zip(models, copies, strict=True)])
    dense_s = found.latency.value * found.speedup.value
    conditions = {**found.speedup.conditions, "copies": list(copies)}
    return fresh.Remeasured(
        replace(found.latency, value=dense_s / ratio, ci_low=dense_s / high, ci_high=dense_s / low),
        replace(found.speedup, value=ratio, ci_low=low, ci_high=high, conditions=conditions),
    )


def write_inputs(inputs: Sequence[np.ndarray], path: Path) -> Path:
    """A samples file of one batch; returns its path."""
    arrays = {f"00000.input{place}": array for place, array in enumerate(inputs)}
    np.savez(path, allow_pickle=False, **arrays)
    return path
