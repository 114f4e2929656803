"""What is searched, and the run directory that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.errors import UsageError
from hwprune.streaming import road
from hwprune.streaming.phases import Tokens
from hwprune.workload.text_windows import TextData

JOB = "language.json"
GROWS = ("trials", "points", "quantize")
"""What a search that is gone on with may have another of."""
WORK = "work"
"""Folder in the run for what is only needed to go on."""


@dataclass(frozen=True, slots=True)
class LanguageJob:
    """What is searched.

    Attributes:
        source: a Hugging Face folder.
        gguf: a file in it that holds the weights.
        data: texts.
        tokens: prompt and answer whose time counts.
        space: see `part_choices.SPACES`.
        limits: phase -> most seconds; ``size``, ``cache`` -> most bytes of the file in 32 bits, and of what is kept of a token.
        max_drop: what perplexity may rise by at most; None: points are spread over the front.
        relative: ``max_drop`` is a share of the dense model's.
        trials: models that are run.
        points: of the front that are pruned block by block, written and measured in fresh processes.
        multiple: of numbers of neurons.
        distil_tokens: see `road.prune_folder`; of each point.
        questions: a .jsonl file (see `read_questions`); the share of right answers of each point is told.
        quantize: precisions in which the dense model and each point are written, too (see `quantised_onnx`).
    """

    source: Path
    data: TextData
    tokens: Tokens = field(default_factory=Tokens)
    gguf: str | None = None
    target: str = "cpu"
    space: str = "default"
    limits: Mapping[str, float] | None = None
    trials: int = 60
    points: int = 4
    seed: int = 0
    multiple: int = road.MULTIPLE
    exclude: Sequence[str] = ()
    quantize: Sequence[str] = ()
    distil_tokens: int = 0
    questions: Path | None = None
    max_drop: float | None = None
    relative: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the run directory."""
        return json.loads(json.dumps(asdict(self), default=str))  # type: ignore[no-any-return]


def claim(job: LanguageJob, out: Path, *, resume: bool) -> None:
    """Make the run directory, or find out that it is this job's."""
    told = job.to_json()
    if (out / JOB).is_file():
        if not resume:
            raise UsageError(f"{out} holds a search: go on with --resume, or choose another --out")
        other = read_json(out / JOB)
        if changed := [key for key in told if told[key] != other.get(key, told[key]) and key not in GROWS]:
            raise UsageError(f"the search in {out} has another {', '.join(changed)}: choose another --out")
    elif out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not an empty folder: choose another --out")
    elif resume:
        raise UsageError(f"{out} holds no search to go on with")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    write_atomic(out / JOB, dump_json(told))
