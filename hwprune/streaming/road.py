"""The whole road: a language model's folder and a text -> a pruned folder, with its perplexity before and after."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hwprune.common import formatting
from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError
from hwprune.streaming.folder import LanguageFolder, OtherNamesError
from hwprune.streaming.folder_writing import WHOLE, check_first, write_folder
from hwprune.streaming.likelihood import accuracy, read_questions
from hwprune.streaming.perplexity import perplexity, window_losses
from hwprune.streaming.sweep import Sweep, SweepPlan
from hwprune.workload import gguf_file
from hwprune.workload.text_windows import TextData, tokenizer_of

WORK = "unfinished"
"""Folder in ``out`` for what a killed run goes on with; it is gone when the model is there."""
COPIES = 4
"""How often a block's weights are in memory at most, in 32 bits: the block, its graph, and two candidates."""
SQUARES = 4
"""Matrices of the widest input's size in each dim, at most, while a block is pruned."""


def prune_folder(
    source: Path,
    data: TextData,
    plan: SweepPlan,
    out: Path,
    *,
    gguf: str | None = None,
    memory: int | None = None,
    score: bool = False,
    choices: Path | None = None,
    step: Tell = silent,
) -> dict[str, Any]:
    """Prune a causal language model block by block and write a folder that transformers loads.

    Args:
        source: a Hugging Face folder.
        gguf: a file in it that holds the weights; they are unpacked to 32 bits first, in memory.
        memory: bytes that may be used; what surely needs more is refused.
        score: perplexity before and after.
        choices: questions (see `read_questions`); the share of right answers before and after.

    Returns:
        ``out params dense_params generates kept blocks errors plain seconds peak_bytes``, with ``score`` also ``perplexity
        dense_perplexity windows length``, with ``choices`` also ``accuracy dense_accuracy questions``.

    Raises:
        UsageError, WorkloadError: see `LanguageFolder`, `TextData`, `Sweep`, `write_folder`.
        RunError: what was written computes something else than what was pruned.
    """
    started = time.monotonic()
    work = out / WORK
    if gguf is not None:
        source = gguf_file.unpacked(source, gguf, work / "dense")
    try:
        folder = LanguageFolder(source)
    except OtherNamesError:
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        if 2 * size > (WHOLE if memory is None else memory):
            raise
        source = gguf_file.unpacked(source, None, work / "dense")
        folder = LanguageFolder(source)
    if memory is not None and (needed := needs(folder)) > memory:
        raise UsageError(
            f"one block of {folder.kind.__name__} needs about {formatting.size(needed)} while it is pruned, more than --memory "
            f"{formatting.size(memory)}"
        )
    questions = None if choices is None else read_questions(choices)
    calibration, judged = data.read(source)
    dtype = torch.bfloat16 if folder.dtype == torch.bfloat16 else torch.float32
    sweep = Sweep(folder, calibration, plan, work / "sweep", dtype, step)
    try:
        done = sweep.run(partial(check_first, sweep))
    except BaseException as error:
        nothing_to_go_on_with = isinstance(error, UsageError) or not sweep.block_file(0).is_file()
        if sweep.owns_work and nothing_to_go_on_with:
            shutil.rmtree(work, ignore_errors=True)
        raise
    try:
        generates = write_folder(sweep, done, out, memory)
    except BaseException:
        for path in out.iterdir():  # a half-filled folder, or one that computes something else, would pass for the model
            if path.is_file():
                path.unlink()
        raise
    facts: dict[str, Any] = {
        "out": str(out), "dense_params": parameters(folder), "params": parameters(LanguageFolder(out)),
        "generates": generates, "kept": done.kept, "blocks": folder.depth, "errors": done.errors, "plain": done.plain,
    }  # fmt: skip
    if score:
        facts["dense_perplexity"] = perplexity(window_losses(folder, judged, step, work))
        facts["perplexity"] = perplexity(window_losses(LanguageFolder(out), judged, step, work))
        facts |= {"windows": len(judged), "length": data.length}
    if questions is not None:
        tokenizer = tokenizer_of(source)
        facts["dense_accuracy"] = accuracy(folder, tokenizer, questions, step)
        facts["accuracy"] = accuracy(LanguageFolder(out), tokenizer, questions, step)
        facts["questions"] = len(questions)
    shutil.rmtree(work)
    facts["seconds"] = time.monotonic() - started
    facts["peak_bytes"] = peak_bytes()
    return facts


def parameters(folder: LanguageFolder) -> int:
    """Number of parameters; tied ones count once."""
    return sum(x.numel() for x in folder.skeleton.parameters())


def needs(folder: LanguageFolder) -> int:
    """Bytes that pruning one block needs, roughly and at least."""
    block = next(iter(folder.skeleton.get_submodule(folder.blocks).children()))
    weights = sum(x.numel() for x in block.parameters())
    widest = max((x.shape[1] for x in block.parameters() if x.ndim == 2), default=0)
    ends = sum(x.numel() for name, x in folder.skeleton.named_parameters() if not name.startswith(f"{folder.blocks}."))
    return 4 * max(COPIES * weights + SQUARES * widest**2, ends)


def peak_bytes() -> int:
    """The most that this process has held in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
