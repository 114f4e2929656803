"""The whole road: a language model's folder and a text -> a pruned folder, with its perplexity before and after."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hwprune.common import formatting
from hwprune.common.files import read_json
from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.streaming import cached_onnx, gguf_writing, learned_masks, llama_files
from hwprune.streaming.distilling import distil
from hwprune.streaming.folder import LanguageFolder, OtherNamesError
from hwprune.streaming.folder_writing import WHOLE, check_first, write_folder
from hwprune.streaming.likelihood import accuracy, read_questions
from hwprune.streaming.perplexity import perplexity, window_losses
from hwprune.streaming.phases import Tokens, check_target, runs_programs
from hwprune.streaming.sublayers import ATTENTION, MLP, names_of
from hwprune.streaming.sweep import Sweep, Swept
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.streaming.uneven import DECI
from hwprune.streaming.written_files import KnownDense, cached_facts, gguf_facts, silent_places
from hwprune.workload import gguf_file
from hwprune.workload.text_windows import TextData, tokenizer_of

WORK = "unfinished"
"""Folder in ``out`` for what a killed run goes on with; it is gone when the model is there."""
COPIES = 4
"""How often a block's weights are in memory at most, in 32 bits: the block, its graph, and two candidates."""
CHECKED_TOKENS = 64
"""Tokens of text with which an ONNX file is checked."""
SQUARES = 4
"""Matrices of the widest input's size in each dim, at most, while a block is pruned."""
MULTIPLE = 32
"""Numbers of neurons and channels are multiples of this where nobody says another: kernels work in such pieces."""


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
    onnx: bool = False,
    gguf_out: bool = False,
    tokens: Tokens | None = None,
    asked: Tokens | None = None,
    target: Target | None = None,
    known: KnownDense | None = None,
    quantize: Sequence[str] = (),
    distil_tokens: int = 0,
    step: Tell = silent,
) -> dict[str, Any]:
    """Prune a causal language model block by block and write a folder that transformers loads.

    Args:
        source: a Hugging Face folder.
        gguf: a file in it that holds the weights; they are unpacked to 32 bits first, in memory.
        memory: bytes that may be used; what surely needs more is refused.
        score: perplexity before and after.
        choices: questions (see `read_questions`); the share of right answers before and after.
        onnx: a file with a cache, too, of the kind that the target runs: ``onnx/model.onnx``, with OpenVINO's
            ``openvino/openvino_model.xml`` beside it, or ``pytorch/model.pt2``. The whole model is in memory for it.
        gguf_out: a GGUF file, too, ``model.gguf``, in the types of the one that was read. Where llama.cpp is installed it is run
            there.
        tokens: prompt and answer whose latencies are measured, before and after, with the files that are written; without any
            of them with ONNX files. None: none are.
        asked: tokens for which a program has room where nothing is measured.
        target: where files are measured. Default: ONNX Runtime on this CPU.
        known: what is known of the dense model already.
        distil_tokens: tokens of the text that calibrates from which the dense model teaches the pruned one; 0: none. The whole
            pruned model is in memory meanwhile.
        quantize: precisions in which the ONNX file is written, too: ``onnx/model.int8.onnx`` (see `quantised_onnx`).

    Returns:
        ``out params dense_params generates kept silent blocks errors plain width uneven vllm seconds peak_bytes`` (``uneven``:
        blocks have different sizes; ``vllm``: and vLLM knows their form), with ``score`` also
        ``perplexity dense_perplexity windows length``, and ``untaught_perplexity`` of before a distillation, with ``choices``
        also ``accuracy dense_accuracy questions``, with ``tokens`` also ``phases`` (see `Phases`), with ``onnx`` also
        ``openvino``, or ``program`` and ``positions`` (file, and tokens that it has room for), with ``quantize`` also
        ``quantised`` (precision -> `quantised_facts`), with ``gguf_out`` also ``gguf_bytes dense_gguf_bytes
        gguf_types``, and ``llama_missing`` (why llama.cpp can't be used) or ``llama_divergence`` (see `check_llama`) and, with
        ``tokens``, ``llama_phases``, and with ``score`` also ``gguf_perplexity``.

    Raises:
        UsageError, WorkloadError: see `LanguageFolder`, `TextData`, `Sweep`, `write_folder`.
        RunError: what was written computes something else than what was pruned.
    """
    started = time.monotonic()
    work = out / WORK
    if gguf_out and gguf is None:
        raise UsageError(
            "--format gguf writes a file like the one that --gguf reads; of other models llama.cpp's convert_hf_to_gguf.py makes "
            "one from the folder"
        )
    if gguf_out and plan.takes(MLP):
        raise UsageError("GGUF files hold no blocks without an MLP: write --format huggingface,onnx")
    if gguf_out and gguf is not None and (source / gguf).is_file() and (plan.by_block or plan.takes(ATTENTION)):
        gguf_writing.check_architecture(source / gguf)
    given, (source, folder) = source, _opened(source, gguf, work, memory)
    with_cache = onnx or bool(quantize) or (tokens is not None and not (gguf_out and llama_files.missing() is None))
    if with_cache:
        _check_cache(folder, memory, tokens or asked, target or targets.load("cpu"))
    questions = None if choices is None else read_questions(choices)
    calibration, judged = data.read(source)
    dtype = torch.bfloat16 if folder.dtype == torch.bfloat16 else torch.float32
    text = _text_of_gates(plan, folder, data, memory)
    sweep = Sweep(folder, calibration, plan, work / "sweep", dtype, step, text)
    dense_file = given / gguf if gguf_out and gguf is not None else None
    done, generates = _written(sweep, out, work, memory, dense_file)
    facts: dict[str, Any] = {
        "out": str(out), "dense_params": parameters(folder), "params": parameters(LanguageFolder(out), done),
        "generates": generates, "kept": done.kept, "silent": done.silent, "blocks": folder.depth, "errors": done.errors,
        "plain": done.plain, "width": len(done.width) or None, "uneven": LanguageFolder(out).uneven,
        "vllm": read_json(out / "config.json").get("architectures") == [DECI],
    }  # fmt: skip
    if distil_tokens:
        facts |= _taught(out, folder, data.to_learn(source), distil_tokens, judged if score else None, work, step)
    if score:
        facts["dense_perplexity"] = known.perplexity if known else perplexity(window_losses(folder, judged, step, work))
        facts["perplexity"] = perplexity(window_losses(LanguageFolder(out), judged, step, work))
        facts |= {"windows": len(judged), "length": data.length}
    if questions is not None:
        tokenizer = tokenizer_of(source)
        facts["dense_accuracy"] = accuracy(folder, tokenizer, questions, step)
        facts["accuracy"] = accuracy(LanguageFolder(out), tokenizer, questions, step)
        facts["questions"] = len(questions)
    if gguf_out and gguf is not None:
        back, told = gguf_facts(given / gguf, out, done, work, step)
        facts |= told
        if score:
            facts["gguf_perplexity"] = perplexity(window_losses(back, judged, step, work))
        if llama_files.missing() is None:
            facts |= llama_files.tried(given / gguf, out / gguf_writing.NAME, back, calibration[:1], tokens, target, step)
        else:
            facts["llama_missing"] = llama_files.missing()
    if with_cache:
        facts |= cached_facts(
            source,
            out,
            onnx=onnx or bool(quantize),
            work=work,
            ids=calibration[:1, :CHECKED_TOKENS],
            tokens=tokens,
            target=target or targets.load("cpu"),
            known=known,
            precisions=quantize,
            judged=judged if score else None,
            step=step,
            asked=asked,
        )
    shutil.rmtree(work)
    facts["seconds"] = time.monotonic() - started
    facts["peak_bytes"] = peak_bytes()
    return facts


def _taught(
    out: Path, folder: LanguageFolder, ids: torch.Tensor, tokens: int, judged: torch.Tensor | None, work: Path, step: Tell
) -> dict[str, Any]:
    """Let the dense model teach the pruned one; with windows that judge also what it was before."""
    before = {}
    if judged is not None:
        before["untaught_perplexity"] = perplexity(window_losses(LanguageFolder(out), judged, step, work))
    return {**before, "distilled": distil(out, folder, ids, tokens, work, step).to_json()}


def usual_multiple(source: Path, gguf: str | None, *, gguf_out: bool, width: bool = False) -> int:
    """What numbers of neurons, or channels, should be multiples of: of `MULTIPLE`, and of what the types of a GGUF file need.

    Args:
        width: are channels of the stream cut?
    """
    if gguf_out and gguf is not None and (source / gguf).is_file():
        return max(MULTIPLE, gguf_writing.block_size(source / gguf, width=width))
    return MULTIPLE


def _opened(source: Path, gguf: str | None, work: Path, memory: int | None) -> tuple[Path, LanguageFolder]:
    """The folder whose tensors are named as in memory: the user's own, or one that is made of it."""
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
    return source, folder


def _check_cache(folder: LanguageFolder, memory: int | None, tokens: Tokens | None, target: Target) -> None:
    """What can't be written or measured must be known before hours of pruning. Raises `UsageError`."""
    check_target(target, tokens, folder.positions)
    _check_whole(folder, memory, "an ONNX file" if not runs_programs(target) else "a program")
    cached_onnx.cache_shape(cached_onnx.loaded(folder.path))


def _text_of_gates(plan: SweepPlan, folder: LanguageFolder, data: TextData, memory: int | None) -> torch.Tensor | None:
    """What gates are learned from; None: the criterion is another. Raises `UsageError`: the model is too large for it."""
    if learned_masks.tokens_of(plan.criterion) is None:
        return None
    _check_whole(folder, memory, f"--criterion {plan.criterion}")
    return data.to_learn(folder.path)


def _check_whole(folder: LanguageFolder, memory: int | None, what: str) -> None:
    """Raises `UsageError` where the whole model does not fit into memory three times."""
    if 3 * _bytes(folder) > (WHOLE if memory is None else memory):
        size = formatting.size(3 * _bytes(folder))
        raise UsageError(f"{what} needs the whole of {folder.kind.__name__} in memory, about {size}")


def _written(sweep: Sweep, out: Path, work: Path, memory: int | None, gguf: Path | None = None) -> tuple[Swept, bool]:
    """Run the sweep and write its folder: what it did, and whether the folder was loaded as a whole and generates.

    Args:
        gguf: the dense file, if one like it is to be written.
    """

    def check(done: Swept) -> None:
        if gguf is not None and (sweep.plan.by_block or done.silent):
            gguf_writing.check_architecture(gguf, silent_places(done))
        check_first(sweep, done)

    try:
        done = sweep.run(check)
    except BaseException as error:
        nothing_to_go_on_with = isinstance(error, UsageError) or not sweep.block_file(0).is_file()
        if sweep.owns_work and nothing_to_go_on_with:
            shutil.rmtree(work, ignore_errors=True)
        raise
    try:
        return done, write_folder(sweep, done, out, memory)
    except BaseException:
        for path in out.iterdir():  # a half-filled folder, or one that computes something else, would pass for the model
            if path.is_file():
                path.unlink()
        raise


def _bytes(folder: LanguageFolder) -> int:
    """Size of the weights in 32 bits."""
    return 4 * parameters(folder)


def parameters(folder: LanguageFolder, done: Swept | None = None) -> int:
    """Number of parameters; tied ones count once.

    Args:
        done: what made the folder: branches that are gone, and zeros in it, don't count.
    """
    count = sum(x.numel() for x in folder.skeleton.parameters())
    for kind, places in ({} if done is None or folder.uneven else done.silent).items():
        assert done is not None
        for index in places:
            layer = folder.skeleton.get_submodule(f"{folder.blocks}.{done.kept.index(index)}")
            count -= sum(x.numel() for x in layer.get_submodule(names_of(layer)[kind]).parameters())
    return count


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
