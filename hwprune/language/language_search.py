"""The whole search: a folder and a text -> a front of perplexity against measured time, each point with its files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.errors import RunError, UsageError
from hwprune.language import part_damages
from hwprune.language.language_record import RECORD, LanguagePoint, write_record
from hwprune.language.language_report import FILE as REPORT
from hwprune.language.language_report import write_report
from hwprune.language.part_choices import PARTS, Allocation, PartChoices, by_block, choices_for
from hwprune.language.part_damages import PartStore, Texts
from hwprune.language.phase_prices import PhaseBench, measure_prices
from hwprune.language.phase_study import Allocator, PhaseStudy
from hwprune.language.trial_scores import TrialScorer
from hwprune.latency.paired import Paired
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.streaming import cached_onnx, road
from hwprune.streaming.assembled_onnx import Assembler, blocks_of
from hwprune.streaming.block_pruning import BlockPruner
from hwprune.streaming.blocks import DecoderBlock, block_of, entering
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.continuation import continuation, in_words
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.perplexity import perplexity, window_losses
from hwprune.streaming.phases import Tokens
from hwprune.streaming.plan_file import write_blocks
from hwprune.streaming.sublayers import ATTENTION, MLP, names_of
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.streaming.uneven import known_lengths
from hwprune.streaming.written_files import KnownDense
from hwprune.workload import gguf_file
from hwprune.workload.text_windows import TextData

JOB = "language.json"
WORK = "work"
"""Folder in the run for what is only needed to go on."""
LOOKED, LOOKED_LENGTH = 2, 256
"""Windows, and tokens of each, on which single choices are looked at: differences between choices are paired, token by token."""
HELD = 2
"""Windows that trials are scored on."""
MOST_DIVERGENCE = 1.0
"""Nats a token, before any repair, beyond which a model is not written: its perplexity is some three times the dense one's."""
PROMPT, NEW = 32, 48
"""Tokens of a text that each point goes on with, and of what it says."""
CHECKED_TOKENS = 64
"""Tokens on which the dense model's file is compared with PyTorch."""


@dataclass(frozen=True, slots=True)
class LanguageJob:
    """What is searched.

    Attributes:
        source: a Hugging Face folder.
        gguf: a file in it that holds the weights.
        data: texts.
        tokens: prompt and answer whose time counts.
        space: see `part_choices.SPACES`.
        limits: phase -> most seconds.
        trials: models that are run.
        points: of the front that are pruned block by block, written and measured in fresh processes.
        multiple: of numbers of neurons.
    """

    source: Path
    data: TextData
    tokens: Tokens = field(default_factory=Tokens)
    gguf: str | None = None
    target: str = "cpu"
    space: str = "default"
    limits: Mapping[str, float] | None = None
    trials: int = 40
    points: int = 4
    seed: int = 0
    multiple: int = road.MULTIPLE
    exclude: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """For the run directory."""
        return json.loads(json.dumps(asdict(self), default=str))  # type: ignore[no-any-return]


def search_language(job: LanguageJob, out: Path, *, resume: bool = False, step: Tell = silent) -> dict[str, Any]:
    """Run the search; returns the record.

    Args:
        out: the run directory; one that a killed search has left is gone on with if ``resume``.

    Raises:
        UsageError, WorkloadError: see `LanguageFolder`, `choices_for`, `PhaseStudy`.
        RunError: a file computes something else than the model, or nothing can be measured.
    """
    started = time.monotonic()
    _claim(job, out, resume=resume)
    work = out / WORK
    target = targets.load(job.target)
    source = job.source if job.gguf is None else gguf_file.unpacked(job.source, job.gguf, work / "dense")
    folder = LanguageFolder(source)
    if folder.uneven:
        raise UsageError("this model's blocks have different sizes already: search from the dense model")
    calibration, judged = job.data.read(source)
    texts = _divided(calibration)
    plan = SweepPlan((), "obs", "obs", tuple(job.exclude), job.multiple)
    first, given = _first_block(folder, texts.fitted, work)
    choices, store = _choices(folder, first, given, texts, plan, job, work)
    step("writing the dense model")
    samples = _samples(first, choices, plan, store)
    assembler = Assembler(
        folder, [{name: tuple(x.shape) for name, x in block.items()} for block in samples.values()], store.lengths
    )
    dense = _dense_file(folder, assembler, work, texts.fitted[:1, :CHECKED_TOKENS])
    damages = part_damages.part_damages(folder, texts, choices, plan, store, work, step)
    with PhaseBench(target, job.tokens, dense, work) as bench:
        prices = measure_prices(bench, assembler, samples, blocks_of(folder), choices, work, step)
        allocator = Allocator(
            choices, damages, prices, job.tokens, dict(job.limits or {}), uniform=job.space == "uniform"
        )  # fmt: skip
        scorer = TrialScorer(folder, texts.held, choices, store, work)

        def measure(allocation: Allocation) -> dict[str, Paired]:
            path = work / "trial.onnx"
            shape = assembler.write(scorer.tensors(allocation), path)
            return bench.measure(path, shape)

        study = PhaseStudy(out, allocator, scorer.score, measure, job.seed)
        study.run(job.trials, lambda done, trials, text: step(f"trials: {text}" if text else "trials", done, trials))
    known = KnownDense(_dense_perplexity(folder, judged, work, step), dense)
    points = _finalists(study, job, choices, plan, source, out, target, known, judged, step)
    record = write_record(out, job.to_json(), folder, choices, damages, prices, study, points, time.monotonic() - started)
    write_report(record, out / REPORT)
    if not points:
        raise RunError(f"no trial keeps the limits; the run is kept: {out / RECORD}")
    return record


def _claim(job: LanguageJob, out: Path, *, resume: bool) -> None:
    """Make the run directory, or find out that it is this job's."""
    told = job.to_json()
    if (out / JOB).is_file():
        if not resume:
            raise UsageError(f"{out} holds a search: go on with --resume, or choose another --out")
        other = read_json(out / JOB)
        if changed := [key for key in told if told[key] != other.get(key) and key not in ("trials", "points")]:
            raise UsageError(f"the search in {out} has another {', '.join(changed)}: choose another --out")
    elif out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not an empty folder: choose another --out")
    elif resume:
        raise UsageError(f"{out} holds no search to go on with")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    write_atomic(out / JOB, dump_json(told))


def _divided(calibration: torch.Tensor) -> Texts:
    """The calibration windows by what they are for."""
    if len(calibration) < HELD + LOOKED + 1:
        raise UsageError(
            f"the text that calibrates has {len(calibration)} windows; a search needs at least {HELD + LOOKED + 1}: "
            "give a longer text, or a smaller --length"
        )
    every = len(calibration) // (HELD + LOOKED)
    apart = list(range(0, every * (HELD + LOOKED), every))
    fitted = [window for window in range(len(calibration)) if window not in apart]
    return Texts(calibration[fitted], calibration[apart[::2]][:, :LOOKED_LENGTH], calibration[apart[1::2]])


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
    refused = part_damages.check_parts(block, states.read(0), PARTS)
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


def _dense_file(folder: LanguageFolder, assembler: Assembler, work: Path, ids: torch.Tensor) -> tuple[Path, CacheShape]:
    """The dense model's file, put together as those of trials are, and compared with PyTorch."""
    path = work / "dense.onnx"
    shape = assembler.write(blocks_of(folder), path)
    cached_onnx.check_cached_onnx(path, folder.whole(), shape, ids)
    return path, shape


def _dense_perplexity(folder: LanguageFolder, judged: torch.Tensor, work: Path, step: Tell) -> float:
    file = work / "dense.json"
    if not file.is_file():
        write_atomic(file, dump_json({"perplexity": perplexity(window_losses(folder, judged, step, work))}))
    return float(read_json(file)["perplexity"])


def _finalists(
    study: PhaseStudy,
    job: LanguageJob,
    choices: PartChoices,
    plan: SweepPlan,
    source: Path,
    out: Path,
    target: Target,
    known: KnownDense,
    judged: torch.Tensor,
    step: Tell,
) -> list[LanguagePoint]:
    """Points spread over the front, pruned block by block, written, scored and measured in fresh processes."""
    front, found = study.front(), []
    for trial in _spread(front, job.points):
        place = out / "candidates" / str(trial.number)
        blocks = by_block(choices, json.loads(trial.user_attrs["allocation"]))
        if not (place / "result.json").is_file():
            facts = road.prune_folder(
                source, job.data, replace(plan, by_block=blocks), place, score=True, onnx=True, tokens=job.tokens, target=target,
                known=known,
                step=lambda text, *rest, number=trial.number: step(f"candidate {number}: {text}", *rest),
            )  # fmt: skip
            if facts["generates"]:
                before = _dense_words(source, judged, out)
                facts["continuation"] = before | {"model": continuation(LanguageFolder(place), judged[:1, :PROMPT], NEW)}
            write_blocks(place / "blocks.json", blocks)
            write_atomic(place / "result.json", dump_json(facts))
        found.append(LanguagePoint(trial.number, blocks, read_json(place / "result.json"), dict(trial.user_attrs["score"])))
    return found


def _dense_words(source: Path, judged: torch.Tensor, out: Path) -> dict[str, str]:
    """A prompt, and how the dense model goes on."""
    file = out / WORK / "words.json"
    if not file.is_file():
        folder, ids = LanguageFolder(source), judged[:1, :PROMPT]
        write_atomic(file, dump_json({"prompt": in_words(source, ids), "dense": continuation(folder, ids, NEW)}))
    return dict(read_json(file))


def _spread(front: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly over the logarithm of the speedup, the fastest that is of use among them."""
    useful = [one for one in front if one.values[0] <= MOST_DIVERGENCE] or list(front[:1])
    if len(useful) <= count:
        return useful
    logs = np.log([one.values[1] for one in useful])
    wanted = np.linspace(min(logs[0], 0.0), logs[-1], count + 1)[1:]
    places = {int(np.abs(logs - one).argmin()) for one in wanted}
    return [useful[place] for place in sorted(places)]
