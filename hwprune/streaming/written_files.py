"""The files beside the folder: ONNX with a cache, and GGUF; checked, and measured."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hwprune.common.telling import Tell
from hwprune.errors import RunError
from hwprune.records.target import Target
from hwprune.streaming import cached_onnx, gguf_writing, phases
from hwprune.streaming.assembled_onnx import write_assembled
from hwprune.streaming.block_templates import NotAssembledError
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.phases import Tokens
from hwprune.streaming.sublayers import ATTENTION
from hwprune.streaming.sweep import Swept
from hwprune.workload import gguf_file


@dataclass(frozen=True, slots=True)
class KnownDense:
    """What others have found out of the dense model.

    Attributes:
        perplexity: of the tokens that judge.
        onnx: its file with a cache, and the sizes of that.
    """

    perplexity: float
    onnx: tuple[Path, CacheShape]


def cached_facts(
    dense: Path,
    out: Path,
    *,
    onnx: bool,
    work: Path,
    ids: torch.Tensor,
    tokens: Tokens | None,
    target: Target,
    known: KnownDense | None,
    step: Tell,
) -> dict[str, Any]:
    """Write the ONNX file, and measure it; returns what `road.prune_folder` tells of it.

    Args:
        dense: the dense folder; ``out``: the pruned one.
        onnx: does the file stay?
        ids: (1, tokens) with which files are checked.
        tokens: what is measured; None: nothing is.
    """
    step("writing the ONNX file")
    made, shape = cached_file(out, (out if onnx else work) / "onnx", ids)
    facts: dict[str, Any] = {"cache_bytes_per_token": shape.bytes_per_token}
    if tokens is None:
        return facts
    before = cached_file(dense, work / "dense-onnx", ids) if known is None else known.onnx
    facts["dense_cache_bytes_per_token"] = before[1].bytes_per_token
    first, second = (before[0], before[1].inputs), (made, shape.inputs)
    facts["phases"] = phases.measure(first, second, target, tokens, step).to_json()
    return facts


def silent_places(done: Swept) -> list[int]:
    """Places, among the kept blocks, of those without attention."""
    return [done.kept.index(index) for index in done.silent.get(ATTENTION, [])]


def gguf_facts(source: Path, out: Path, done: Swept, work: Path, step: Tell) -> tuple[LanguageFolder, dict[str, Any]]:
    """What was read back from the file that was written, and facts of it."""
    step("writing the GGUF file")
    written, file = LanguageFolder(out), out / gguf_writing.NAME
    shutil.rmtree(work / "read back", ignore_errors=True)  # a killed run's
    try:
        silent = silent_places(done)
        counts = gguf_writing.write_gguf(source, written, done.kept, file, silent)
        if silent or written.uneven:  # transformers knows no such blocks
            back = gguf_writing.read_back(file, written, work / "read back", silent)
        else:
            back = LanguageFolder(gguf_file.unpacked(out, file.name, work / "read back"))
        gguf_writing.check_gguf(written, back)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    sizes = {"gguf_bytes": file.stat().st_size, "dense_gguf_bytes": source.stat().st_size}
    return back, {**sizes, "gguf_types": dict(counts)}


def cached_file(folder: Path, out: Path, ids: torch.Tensor) -> tuple[Path, CacheShape]:
    """A folder's model as an ONNX file with a cache, checked with tokens of text."""
    model, path = cached_onnx.loaded(folder), out / "model.onnx"
    try:
        shape = write_assembled(LanguageFolder(folder), path)
        cached_onnx.check_cached_onnx(path, model, shape, ids)
        return path, shape
    except (NotAssembledError, RunError):  # blocks of this class don't come apart, or are not what their shapes say
        shape = cached_onnx.cache_shape(model)
        cached_onnx.write_cached_onnx(model, shape, path)
    try:
        cached_onnx.check_cached_onnx(path, model, shape, ids)
    except BaseException:
        shutil.rmtree(out)
        raise
    return path, shape
