"""The files beside the folder: ONNX with a cache, and GGUF; checked, and measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from hwprune.common.telling import Tell
from hwprune.errors import RunError
from hwprune.records.target import Target
from hwprune.streaming import cached_onnx, gguf_writing, phases, quantised_onnx, stateful_openvino, static_cache
from hwprune.streaming.assembled_onnx import write_assembled
from hwprune.streaming.block_templates import NotAssembledError
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.perplexity import perplexity
from hwprune.streaming.phases import Inputs, Tokens, runs_programs
from hwprune.streaming.sublayers import ATTENTION
from hwprune.streaming.sweep import Swept
from hwprune.workload import gguf_file

TOLD = (
    "config.json", "generation_config.json", "*token*.json", "vocab*", "merges.txt", "chat_template*", "*.model", "modeling_*.py",
    "configuration_*.py",
)  # fmt: skip
"""Names of the files in which a folder says what its model and tokenizer are."""


@dataclass(frozen=True, slots=True)
class KnownDense:
    """What others have found out of the dense model.

    Attributes:
        perplexity: of the tokens that judge.
        file: with a cache, of the kind that the target runs, and the sizes of that.
    """

    perplexity: float
    file: tuple[Path, CacheShape]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where files go that are handed over.

    Attributes:
        out: the folder; ONNX files go to ``out/onnx``, OpenVINO's to ``out/openvino``.
        model: a folder with the model's configuration and tokenizer.
        ids: (1, tokens) with which files are checked.
    """

    out: Path
    model: Path
    ids: torch.Tensor

    def openvino(self, made: Path, shape: CacheShape, precision: str = "") -> str:
        """Write an ONNX file as OpenVINO's own, with all that its applications read; returns the file, relative to ``out``."""
        folder = self.out / ("openvino" + (f"-{precision}" if precision else ""))
        file = stateful_openvino.write_stateful(made, shape, folder, self.ids, quantised=bool(precision))
        for one in sorted(self.model.iterdir()):
            if one.is_file() and any(fnmatchcase(one.name, glob) for glob in TOLD):
                shutil.copyfile(one, folder / one.name)
        return str(file.relative_to(self.out))


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
    precisions: Sequence[str],
    judged: torch.Tensor | None,
    step: Tell,
    asked: Tokens | None = None,
) -> dict[str, Any]:
    """Write the file that the target runs (ONNX, OpenVINO's own beside it, or a program), and measure it.

    Returns what `road.prune_folder` tells of it.

    Args:
        dense: the dense folder; ``out``: the pruned one.
        onnx: does the file stay, be it ONNX or a program?
        ids: (1, tokens) with which files are checked.
        tokens: what is measured; None: nothing is.
        asked: tokens for which a program has room, where nothing is measured.
        precisions: in which the file is written, too (see `quantised_onnx`).
        judged: (windows, tokens) for the perplexity of these; None: it is not told.
    """
    programs, room = runs_programs(target), tokens or asked or Tokens()

    def file_of(folder: Path, place: Path) -> tuple[Path, CacheShape]:
        if programs:
            path = place / "pytorch" / static_cache.FILE
            model = cached_onnx.loaded(folder)
            return static_cache.static_file(model, path, ids, room.prompt + room.new, room.batch, target.precision)
        return cached_file(folder, place / "onnx", ids)

    step("writing the program" if programs else "writing the ONNX file")
    made, shape = file_of(out, out if onnx else work)
    facts: dict[str, Any] = {"cache_bytes_per_token": shape.bytes_per_token}
    if onnx and programs:
        facts |= {"program": str(made.relative_to(out)), "positions": room.prompt + room.new}
    if onnx and target.runtime == "openvino":
        step("writing OpenVINO's file")
        facts["openvino"] = Delivery(out, out, ids).openvino(made, shape)
    if tokens is not None:
        before = file_of(dense, work / "dense-file") if known is None else known.file
        facts["dense_cache_bytes_per_token"] = before[1].bytes_per_token
        reference = (before[0], before[1].inputs)
        facts["phases"] = phases.measure(reference, (made, shape.inputs), target, tokens, step).to_json()
        facts["target"] = target.description
    if precisions:
        facts["quantised"] = {
            name: quantised_facts(
                (made, shape),
                name,
                target,
                judged,
                (reference, tokens) if tokens is not None else None,
                step,
                Delivery(out, out, ids) if onnx else None,
            )
            for name in precisions
        }
    return facts


def quantised_facts(
    source: tuple[Path, CacheShape],
    precision: str,
    target: Target,
    judged: torch.Tensor | None,
    measured: tuple[tuple[Path, Inputs], Tokens] | None,
    step: Tell,
    delivery: Delivery | None = None,
) -> dict[str, Any]:
    """Write a file with weights of fewer bits: ``file``, ``bytes``, ``perplexity``, ``phases``, ``openvino``.

    Args:
        target: where it will run: OpenVINO's own perplexity is told there.
        judged: see `cached_facts`.
        measured: the dense model's file with its inputs, and what is measured; None: nothing is.
        delivery: where files go; None: beside the source, and OpenVINO gets no file of its own.
    """
    path, shape = source
    step(f"writing {precision}")
    made = path.with_name(f"{path.stem}.{precision}.onnx")
    if delivery is not None:
        made = delivery.out / "onnx" / f"model.{precision}.onnx"
        made.parent.mkdir(parents=True, exist_ok=True)
    quantised_onnx.write_quantised(path, precision, made)
    facts: dict[str, Any] = {"file": made.name, "bytes": made.stat().st_size, "float_bytes": path.stat().st_size}
    in_openvino = target.runtime == "openvino"
    if in_openvino and delivery is not None:
        facts["openvino"] = delivery.openvino(made, shape, precision)
    if judged is not None:
        losses = stateful_openvino.window_losses if in_openvino else quantised_onnx.window_losses
        facts["perplexity"] = perplexity(losses(made, judged, step))
    if measured is not None:
        reference, tokens = measured
        facts["phases"] = phases.measure(reference, (made, shape.inputs), target, tokens, step).to_json()
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
