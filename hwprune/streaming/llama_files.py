"""GGUF files in llama.cpp itself: do they compute what was written, and how fast."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hwprune import runtimes
from hwprune.common.telling import Tell
from hwprune.errors import CandidateFailure, RunError
from hwprune.latency.bench import Bench
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.streaming import phases
from hwprune.streaming.blocks import block_of, entering, leaving
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.phases import Tokens

RUNTIME = "llama.cpp"
PREFIXES = (8, 24, 64)
"""Numbers of tokens after which the next one's probabilities are compared."""
LOOSEST = 0.1
"""Largest divergence (nats) of the next token's distribution. llama.cpp rounds what enters a layer to 8 bits, which makes some
0.01; tensors in a wrong order make much more."""


def missing() -> str | None:
    """Why llama.cpp can't be used here, or None."""
    return runtimes.missing(RUNTIME)


def cpu(tokens: int, like: Target | None = None) -> Target:
    """This CPU with llama.cpp as its runtime.

    Args:
        tokens: that the cache has room for.
        like: a target with the number of threads; default: ``cpu``.
    """
    like = like or targets.load("cpu")
    return replace(like, name="llama.cpp", runtime=RUNTIME, precision="fp32", options={"context": max(tokens, 256)})


def inputs(batch: int, count: int, past: int) -> list[np.ndarray[Any, Any]]:
    """What `hwprune.runtimes.llama_cpp` takes for so many new tokens after so many in the cache."""
    return [np.ones((batch, past + count), np.int64), np.array([past], np.int64)]


def check_llama(file: Path, read_back: LanguageFolder, ids: torch.Tensor) -> float:
    """Run a file in llama.cpp, in a process of its own, and compare what it says of the next token.

    Args:
        read_back: the file's weights as transformers reads them.
        ids: (1, tokens) of text.

    Returns:
        The largest divergence, in nats.

    Raises:
        RunError: llama.cpp can't load it, or computes something else.
    """
    counts = sorted({min(count, ids.shape[1]) for count in PREFIXES})
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch, Bench(cpu(max(counts) + 1)) as bench:
        samples, out = Path(scratch) / "ids.npz", Path(scratch) / "out.npz"
        np.savez(samples, allow_pickle=False, **{f"{place:05d}.input0": ids[:, :n].numpy() for place, n in enumerate(counts)})
        try:
            bench.load("model", file)
            bench.run("model", samples, out)
        except CandidateFailure as failure:
            raise RunError(f"llama.cpp can't run {file}: {failure.reason}") from failure
        with np.load(out, allow_pickle=False) as stored:
            said = [torch.from_numpy(stored[name][0]).double() for name in sorted(stored.files)]
        for count, known in zip(counts, said, strict=True):
            wanted = _next_token(read_back, ids[:, :count])
            found = nn.functional.pad(known, (0, len(wanted) - len(known)), value=-math.inf)
            divergence = float((wanted.exp() * (wanted - found)).sum())
            if not divergence <= LOOSEST:
                raise RunError(
                    f"llama.cpp computes something else from {file} than transformers: after {count} tokens the next one's "
                    f"distribution is {divergence:.2g} nats away"
                )
            worst = max(worst, divergence)
    return worst


def tried(
    dense: Path, file: Path, read_back: LanguageFolder, ids: torch.Tensor, tokens: Tokens | None, like: Target | None, step: Tell
) -> dict[str, Any]:
    """A pruned file in llama.cpp: ``llama_divergence`` and, with ``tokens``, ``llama_phases``. One that fails does not stay.

    Args:
        dense: the dense file, beside which latencies are measured.
        read_back: see `check_llama`.
        tokens: prompt and answer whose latencies are measured.
        like: see `cpu`.
    """
    step("running the GGUF file in llama.cpp")
    try:
        facts: dict[str, Any] = {"llama_divergence": check_llama(file, read_back, ids)}
    except BaseException:
        file.unlink()
        raise
    if tokens is not None:
        target = cpu(tokens.prompt + tokens.new, like)
        facts["llama_phases"] = phases.measure((dense, inputs), (file, inputs), target, tokens, step).to_json()
    return facts


@torch.no_grad()
def _next_token(folder: LanguageFolder, ids: torch.Tensor) -> torch.Tensor:
    """(words,) log-probabilities."""
    ends = folder.ends()
    hidden, given = entering(ends, folder.blocks, ids)
    for index in range(folder.depth):
        hidden = block_of(folder, index, given[index])(hidden)
    return leaving(ends, folder.blocks, ids, hidden)[0, -1].double().log_softmax(-1)
