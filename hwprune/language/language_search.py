"""The whole search: a folder and a text -> a front of perplexity against measured time, each point with its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hwprune.common.telling import Tell, silent
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.language.allocator import Allocator
from hwprune.language.front_points import PointWriter, dense_perplexity, dense_quantised
from hwprune.language.language_job import WORK, LanguageJob, claim
from hwprune.language.language_record import RECORD, write_record
from hwprune.language.language_report import FILE as REPORT
from hwprune.language.language_report import write_report
from hwprune.language.part_choices import PARTS, Allocation, PartChoices, choices_for
from hwprune.language.part_options import PartStore, Texts, check_parts, check_room, solve_options, stored_bytes
from hwprune.language.phase_bench import PhaseBench
from hwprune.language.phase_prices import SIZE, Prices, measure_prices
from hwprune.language.phase_study import RUINED, PhaseStudy
from hwprune.language.trial_scores import TrialScorer
from hwprune.language.within_drop import Drop
from hwprune.language.word_responses import Responder
from hwprune.latency.paired import Paired
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.streaming.assembled_onnx import Assembler, blocks_of
from hwprune.streaming.block_pruning import BlockPruner
from hwprune.streaming.block_templates import NotAssembledError
from hwprune.streaming.blocks import DecoderBlock, block_of, entering
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.phases import Tokens, check_target, runs_programs
from hwprune.streaming.static_cache import StaticWriter
from hwprune.streaming.sublayers import ATTENTION, MLP, names_of
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.streaming.uneven import known_lengths
from hwprune.streaming.written_files import KnownDense
from hwprune.workload import gguf_file

LOOKED, LOOKED_LENGTH, MOST_DRAWS = 32, 256, 9
"""Windows of one draw, tokens of each, and draws, on which it is looked what words respond to."""
HELD = 4
"""Windows that trials are scored on."""
FEWEST, FEWEST_LOOKED, FEWEST_HELD = 7, 4, 2
"""Windows without which there is no search; where there are not many, they are divided."""
CHECKED_TOKENS = 64
"""Tokens on which the dense model's file is compared with PyTorch."""


def search_language(job: LanguageJob, out: Path, *, resume: bool = False, step: Tell = silent) -> dict[str, Any]:
    """Run the search; returns the record.

    Args:
        out: the run directory; one that a killed search has left is gone on with if ``resume``.

    Raises:
        UsageError, WorkloadError: see `LanguageFolder`, `choices_for`, `PhaseStudy`.
        RunError: a file computes something else than the model, or nothing can be measured.
    """
    started = time.monotonic()
    target = _target(job)
    claim(job, out, resume=resume)
    work = out / WORK
    source = job.source if job.gguf is None else gguf_file.unpacked(job.source, job.gguf, work / "dense")
    folder = LanguageFolder(source)
    check_target(target, job.tokens, folder.positions)
    if folder.uneven:
        raise UsageError("this model's blocks have different sizes already: search from the dense model")
    calibration, judged = job.data.read(source)
    texts = _divided(calibration, job.data.between(source))
    plan = SweepPlan((), "obs", "obs", tuple(job.exclude), job.multiple)
    first, given = _first_block(folder, texts.fitted, work)
    choices, store = _choices(folder, first, given, texts, plan, job, work)
    step("writing the dense model")
    samples = _samples(first, choices, plan, store)
    writer = _writer(folder, samples, store, target, job.tokens)
    dense = _dense_file(folder, writer, work, texts.fitted[:1, :CHECKED_TOKENS])
    sizes = Prices({}, {}).with_sizes(dense, samples, blocks_of(folder)[0], choices)
    sizes.check_sizes(job.limits or {}, choices, folder.depth)
    files = 3 + job.points * (3 if target.runtime == "openvino" else 2)  # the dense one and two of trials; each point's
    check_room(work, folder.depth * stored_bytes(samples, choices, store) + files * sizes.dense[SIZE])
    solve_options(folder, texts.fitted, choices, plan, store, work, step)
    responder = Responder(folder, texts.looked, choices, store, work, step)
    with PhaseBench(target, job.tokens, dense, work) as bench:
        prices = measure_prices(bench, writer, samples, blocks_of(folder), choices, work, step)
        prices = replace(prices, dense={**prices.dense, **sizes.dense}, saved={**prices.saved, **sizes.saved})
        scorer = TrialScorer(folder, texts.held, choices, store, work)
        drop = _drop(job, scorer, folder, lambda: dense_perplexity(folder, judged, work, step))
        allocator = Allocator(choices, prices, job.tokens, job.limits or {}, folder.depth, uniform=job.space == "uniform")

        def measure(allocation: Allocation) -> dict[str, Paired]:
            path = work / f"trial{writer.suffix}"
            try:
                shape = writer.write(scorer.tensors(allocation), path)
            except (NotAssembledError, UsageError) as error:
                raise CandidateFailure("export", str(error)) from error
            return bench.measure(path, shape)

        ruined = RUINED if drop is None else min(RUINED, drop.reach(taught=bool(job.distil_tokens)))
        study = PhaseStudy(out, allocator, scorer.score, measure, responder.near, job.seed, ruined)
        study.run(job.trials, lambda done, trials, text: step(f"trials: {text}" if text else "trials", done, trials))
    known = KnownDense(dense_perplexity(folder, judged, work, step), dense)
    delivery = PointWriter(job, choices, plan, source, out, target, known, judged, texts.held, step)
    points = delivery.points(study.front(), drop)
    quantised = dense_quantised(job, dense, source, judged, target, out, step)
    record = write_record(
        out, job.to_json(), quantised, folder, choices, prices, study, points, time.monotonic() - started, resumed=resume
    )
    write_report(record, out / REPORT)
    if not points:
        nearest = "" if drop is None else drop.nearest(study.front())
        raise RunError(f"no model keeps the limits{nearest}; the run is kept: {out / RECORD}")
    return record


def _target(job: LanguageJob) -> Target:
    """Where models are measured, if that can be."""
    target = targets.load(job.target)
    check_target(target, job.tokens, None)
    if job.quantize and runs_programs(target):
        raise UsageError(f"--quantize writes ONNX files, which {target.name} does not run")
    return target


def _drop(job: LanguageJob, scorer: TrialScorer, folder: LanguageFolder, judged: Callable[[], float]) -> Drop | None:
    """What perplexity may rise by; ``judged`` tells the dense one."""
    if job.max_drop is None:
        return None
    return Drop.of(job.max_drop, 1.0 if job.relative else judged(), scorer.score([(0, 0)] * folder.depth).perplexity)


def _divided(calibration: torch.Tensor, between: torch.Tensor) -> Texts:
    """Windows by what they are for.

    Args:
        calibration: that were asked for.
        between: others of the same text.
    """
    if len(between) >= HELD + LOOKED:
        held, rest = _apart(between, HELD)
        return Texts(calibration, _draws(rest[:, :LOOKED_LENGTH]), held)
    if len(calibration) < FEWEST:
        raise UsageError(
            f"the text that calibrates has {len(calibration)} windows; a search needs at least {FEWEST}: "
            "give a longer text, or a smaller --length"
        )
    held, rest = _apart(calibration, FEWEST_HELD)
    looked, fitted = _apart(rest, max(FEWEST_LOOKED, len(rest) // 4))
    return Texts(fitted, _draws(looked[:, :LOOKED_LENGTH]), held)


def _apart(found: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many windows, evenly from the middle of as many parts, and the others."""
    chosen = [(2 * place + 1) * len(found) // (2 * count) for place in range(count)]
    return found[chosen], found[[place for place in range(len(found)) if place not in chosen]]


def _draws(found: torch.Tensor) -> torch.Tensor:
    """(draws, windows, tokens); each draw is spread over the text."""
    draws = min(max(len(found) // LOOKED, 1), MOST_DRAWS)
    size = min(len(found) // draws, LOOKED)
    return torch.stack([found[draw::draws][:size] for draw in range(draws)])


def _first_block(folder: LanguageFolder, ids: torch.Tensor, work: Path) -> tuple[tuple[DecoderBlock, HiddenStates], list[Any]]:
    ends = folder.ends()
    hidden, given = entering(ends, folder.blocks, ids[:1])
    states = HiddenStates(work / "first", (len(ids), hidden.shape[1], hidden.shape[2]), torch.float32)
    for window in range(len(ids)):
        states.write(window, entering(ends, folder.blocks, ids[window : window + 1])[0])
    return (block_of(folder, 0, given[0]), states), given


def _choices(
    folder: LanguageFolder,
    first: tuple[DecoderBlock, HiddenStates],
    given: list[Any],
    texts: Texts,
    plan: SweepPlan,
    job: LanguageJob,
    work: Path,
) -> tuple[PartChoices, PartStore]:
    """What the first block can do all can; what it can't is known before anything is measured."""
    block, states = first
    lengths = known_lengths(folder, given, states.read(0))
    if not lengths:
        raise UsageError(f"attention and MLP of {folder.kind.__name__} are not one module each: its blocks can't be searched")
    pruner = BlockPruner(plan, f"{folder.blocks}.0", list(range(len(texts.fitted))), [])
    refused = check_parts(block, states.read(0), PARTS)
    names = names_of(block.layer)
    store = PartStore(work / "options", lengths, {ATTENTION: names[ATTENTION], MLP: names[MLP]})
    return choices_for(pruner.sizes(block, states), plan, job.space, refused), store


def _samples(
    first: tuple[DecoderBlock, HiddenStates], choices: PartChoices, plan: SweepPlan, store: PartStore
) -> dict[str, dict[str, torch.Tensor]]:
    """`PartChoice.name` -> tensors of the first block so; and of each attention without an MLP."""
    block, states = first
    own = {name: x.detach() for name, x in block.layer.named_parameters()}
    cheap = replace(plan, criterion="l2", compensation="none")
    pruner = BlockPruner(cheap, "block", [0], [])
    solvable = [one for one in choices.all if one.pattern != one.part]
    found = pruner.options(block, states, [[(one.pattern, one.share)] for one in solvable]) if solvable else []
    samples = {one.name: tensors for one, tensors in zip(solvable, found, strict=True)}
    for one in choices.all:
        if one.pattern == one.part:
            samples[one.name] = store.tensors(0, [one], own)
    without = f"{store.modules[MLP]}."
    if f"{MLP}-0" in samples:  # blocks without an MLP, with each of the attentions
        for one in choices.attention[1:]:
            if one.pattern != one.part:
                samples[f"{one.name}+{MLP}-0"] = {k: x for k, x in samples[one.name].items() if not k.startswith(without)}
    states.remove()
    return samples


def _writer(
    folder: LanguageFolder,
    samples: Mapping[str, Mapping[str, torch.Tensor]],
    store: PartStore,
    target: Target,
    tokens: Tokens,
) -> Assembler | StaticWriter:
    """What makes files of trials, of the kind that the target runs."""
    if runs_programs(target):
        return StaticWriter(folder, store.lengths, tokens.batch, tokens.prompt + tokens.new, target.precision)
    kinds = [{name: tuple(x.shape) for name, x in block.items()} for block in samples.values()]
    return Assembler(folder, kinds, store.lengths)


def _dense_file(
    folder: LanguageFolder, writer: Assembler | StaticWriter, work: Path, ids: torch.Tensor
) -> tuple[Path, CacheShape]:
    """The dense model's file, made as those of trials are, and compared with PyTorch."""
    path = work / f"dense{writer.suffix}"
    shape = writer.write(blocks_of(folder), path)
    writer.check(path, folder.whole(), ids)
    return path, shape
