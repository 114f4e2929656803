"""Fuzzing of what people bring: outputs, labels and batches of all shapes, types and forms (make fuzz).

    python benchmarks/fuzz_workloads.py [--count 2000] [--seed 0]

Each draw makes a model whose outputs are read in one known way (classes along some dim, decisions, numbers; one output or several, in
tuples or mappings, a loss among them or not), data in one of the forms in which loaders yield them, and a worse model to be judged
against it. The metric must be what NumPy computes from the draw, which knows how it made the outputs; or hwprune must refuse with an
error of its own, and only where the draw is ambiguous. Anything else is a finding, printed with its seed.
"""

from __future__ import annotations

import argparse
import collections
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from common import heading
from torch import nn

import hwprune
from hwprune.errors import HwpruneError
from hwprune.workload import confidence, data_checks, scoring
from hwprune.workload.workload import all_tensors

EXAMPLES, BATCH = 24, 8
CLOSE = 1e-5
RIGHT, REFUSED, GUESSED = "right", "refused, ambiguous", "guessed, and said"
FLOATS = (torch.float32, torch.float64)
LABELS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class Known(nn.Module):
    """Gives what was drawn for each example: its input is the example's number, in whatever type the draw has."""

    def __init__(self, outputs: list[np.ndarray[Any, Any]], form: str, dtype: torch.dtype, loss: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.form, self.loss = form, loss
        self.values = [torch.from_numpy(value).to(dtype if value.dtype.kind == "f" else torch.int64) for value in outputs]

    def forward(self, x: torch.Tensor, *_: torch.Tensor) -> Any:
        number = x.reshape(len(x), -1)[:, 0].long()
        found = [value[number] for value in self.values]
        if self.loss == "first":
            found.insert(0, found[0].double().mean())
        elif self.loss == "last":
            found.append(found[0].double().mean())
        if self.form == "mapping":
            return {f"out{place}": value for place, value in enumerate(found)}
        if self.form == "list":
            return [found[0], found[1:]] if len(found) > 1 else found
        return found[0] if len(found) == 1 and self.form == "tensor" else tuple(found)


@dataclass
class Draw:
    """One workload, and what it is worth."""

    name: str
    metric: str
    dense: list[np.ndarray[Any, Any]]
    worse: list[np.ndarray[Any, Any]]
    labels: Any = None
    class_axis: Any = None
    wanted: Callable[[], float] = lambda: float("nan")
    ambiguous: bool = False
    notes: list[str] = field(default_factory=list)


def softmax(x: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def shape_of(draw: np.random.Generator, rank: int, classes: int) -> tuple[tuple[int, ...], int]:
    """(shape of the outputs, dim of the classes): the classes stand at any dim but the first; positions are 1 to 6 long."""
    places = [int(draw.integers(1, 7)) for _ in range(rank - 2)]
    axis = int(draw.integers(1, rank))
    places.insert(axis - 1, classes)
    return (EXAMPLES, *places), axis


def classification(draw: np.random.Generator) -> Draw:
    classes, rank = int(draw.integers(2, 6)), int(draw.integers(2, 5))
    shape, axis = shape_of(draw, rank, classes)
    scores = draw.standard_normal(shape) * 3
    labels = np.asarray(scores + draw.standard_normal(shape) * 2).argmax(axis)
    worse = scores + draw.standard_normal(shape) * 3
    made = [scores, worse]
    if draw.random() < 0.4:
        made = [softmax(x, axis) for x in made]
    answers = made[1].argmax(axis)
    ignored = labels.ndim > 1 and draw.random() < 0.2
    if ignored:
        labels = np.where(draw.random(labels.shape) < 0.2, -100, labels)
        labels.reshape(EXAMPLES, -1)[:, 0] = np.abs(labels.reshape(EXAMPLES, -1)[:, 0]) % classes
    # Two dims that could both be the classes', where neither the labels nor the sizes tell.
    without = [tuple(s for p, s in enumerate(shape) if p != a) for a in range(1, rank) if shape[a] > 1]
    ambiguous = without.count(labels.shape) > 1
    said = axis if ambiguous or draw.random() < 0.2 else None
    ambiguous = ambiguous and said is None

    def wanted() -> float:
        right = (answers == labels).astype(float)
        counted = labels != -100
        per = (right * counted).reshape(EXAMPLES, -1).sum(1) / counted.reshape(EXAMPLES, -1).sum(1)
        return float(per.mean())

    return Draw(f"classes {rank}d", "top1", [made[0]], [made[1]], labels, said, wanted, ambiguous, ["ignored"] * ignored)


def decisions(draw: np.random.Generator) -> Draw:
    columns = int(draw.choice([0, 1, 1, 3]))
    shape = (EXAMPLES,) if columns == 0 else (EXAMPLES, columns)
    scores = draw.standard_normal(shape) * 2
    labels = (scores + draw.standard_normal(shape) > 0).astype(int)
    if columns > 1:  # rows of one "yes" each would be classes
        labels[0], labels[1] = 1, 0
    worse = scores + draw.standard_normal(shape) * 2
    probabilities = draw.random() < 0.5
    made = [1 / (1 + np.exp(-x)) for x in (scores, worse)] if probabilities else [scores, worse]
    yes = made[1] > (0.5 if probabilities else 0)
    told = labels[:, 0] if columns == 1 and draw.random() < 0.5 else labels
    return Draw(
        "decisions", "top1", [made[0]], [made[1]], told, None,
        lambda: float((yes == labels).reshape(EXAMPLES, -1).mean(1).mean()),
    )  # fmt: skip


def numbers(draw: np.random.Generator) -> Draw:
    rank = int(draw.integers(1, 5))
    shape = (EXAMPLES, *(int(draw.integers(1, 5)) for _ in range(rank - 1)))
    truth = draw.standard_normal(shape) * 4 + 1
    dense, worse = truth + draw.standard_normal(shape) * 0.3, truth + draw.standard_normal(shape)
    kind = str(draw.choice(["mae", "mse", "r2"]))
    told = truth.reshape(EXAMPLES, *shape[1:-1]) if rank > 1 and shape[-1] == 1 and draw.random() < 0.5 else truth

    def wanted() -> float:
        error = (worse - truth).reshape(EXAMPLES, -1)
        if kind == "mae":
            return float(np.abs(error).mean(1).mean())
        square = float((error**2).mean(1).mean())
        return square if kind == "mse" else 1 - square / float(truth.var())

    return Draw(f"numbers {kind}", kind, [dense], [worse], told, None, wanted)


def one_agreement(draw: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Any, float, bool]:
    """(dense, worse, the word that says how it is read, the agreement, is it ambiguous without the word)."""
    kind = str(draw.choice(["classes", "distributions", "decisions", "numbers", "answers"]))
    if kind == "answers":
        dense = draw.integers(0, 4, (EXAMPLES,))
        worse = np.where(draw.random(EXAMPLES) < 0.3, draw.integers(0, 4, EXAMPLES), dense)
        return dense, worse, "none", float((dense == worse).mean()), False
    if kind == "decisions":
        dense = draw.standard_normal((EXAMPLES, 1)) + 0.0
        dense[0], dense[1] = 1.0, -1.0
        worse = dense + draw.standard_normal((EXAMPLES, 1))
        return dense, worse, None, float(((dense > 0) == (worse > 0)).mean()), False
    if kind == "numbers":
        shape = (EXAMPLES, *(int(draw.integers(2, 5)) for _ in range(int(draw.integers(1, 4)))))
        dense = draw.standard_normal(shape) * 3
        worse = dense + draw.standard_normal(shape)
        return dense, worse, "none", float(1 - ((dense - worse) ** 2).reshape(EXAMPLES, -1).mean(1).mean() / dense.var()), True
    rank = 2 if kind == "classes" else int(draw.integers(2, 5))
    shape, axis = shape_of(draw, rank, int(draw.integers(2, 6)))
    dense = draw.standard_normal(shape) * 3
    worse = dense + draw.standard_normal(shape) * 2
    if kind == "distributions":
        dense, worse = softmax(dense, axis), softmax(worse, axis)
    same = (dense.argmax(axis) == worse.argmax(axis)).reshape(EXAMPLES, -1).mean(1).mean()
    return dense, worse, axis, float(same), False


def agreement(draw: np.random.Generator) -> Draw:
    parts = [one_agreement(draw) for _ in range(int(draw.choice([1, 1, 2, 3])))]
    say = any(part[4] for part in parts) and draw.random() < 0.7
    words: Any = None
    if say:
        # A word for each output; a decision needs none, which only the whole list of words can't say.
        if any(part[2] is None for part in parts):
            parts = [part for part in parts if part[2] is not None]
        words = [part[2] for part in parts]
    ambiguous = not say and any(part[4] for part in parts)
    value = float(np.mean([part[3] for part in parts]))
    return Draw("agreement", "agreement", [p[0] for p in parts], [p[1] for p in parts], None, words, lambda: value, ambiguous)


def several(draw: np.random.Generator) -> Draw:
    """An answer with labels among other outputs."""
    made = decisions(draw) if draw.random() < 0.3 else classification(draw)
    made.name = "several, " + made.name
    extra = draw.standard_normal((EXAMPLES, 7, 11))
    made.dense.append(extra)
    made.worse.append(extra + draw.standard_normal(extra.shape))
    made.class_axis = None
    without = list(made.dense[0].shape)
    made.ambiguous = made.ambiguous or len(set(without[1:])) < len(without[1:])
    return made


KINDS = (classification, classification, decisions, numbers, agreement, agreement, several)


def batches(draw: np.random.Generator, made: Draw) -> tuple[list[Any], tuple[torch.Tensor, ...]]:
    """(batches in one of the forms of loaders, example inputs)."""
    inputs = torch.arange(EXAMPLES)[:, None].repeat(1, 3)
    kind = draw.choice(["int64", "float32", "float64", "int32"])
    x = inputs.to(getattr(torch, str(kind)))
    pieces = list(x.split(BATCH if draw.random() < 0.7 else 7))
    if made.labels is None:
        forms = [
            [(piece, None) for piece in pieces],
            pieces,
            [((piece,), None) for piece in pieces],
            [{"x": piece} for piece in pieces],
        ]
        return forms[int(draw.integers(len(forms)))], (x[:1],)
    whole = np.asarray(made.labels)
    labels = torch.from_numpy(whole)
    if whole.dtype.kind == "i":
        kinds = [k for k in LABELS if whole.min() >= torch.iinfo(k).min]
        labels = labels.to(kinds[int(draw.integers(len(kinds)))])
    elif draw.random() < 0.5:
        labels = labels.float()
    parts: list[Any] = list(labels.split(len(pieces[0])))
    form = int(draw.integers(6))
    if form == 1:
        parts = [part.numpy() for part in parts]
    elif form == 2 and labels.ndim == 1:
        parts = [part.tolist() for part in parts]
    elif form == 3 and labels.ndim == 1 and whole.dtype.kind == "i" and made.metric == "top1":
        parts = [part[:, None] for part in parts]
    if form == 4:
        return [{"x": piece, "labels": part} for piece, part in zip(pieces, parts, strict=True)], (x[:1],)
    return list(zip(pieces, parts, strict=True)), (x[:1],)


def examine(seed: int) -> tuple[str, str, str]:
    """(kind, verdict, words)."""
    draw = np.random.default_rng(seed)
    made = KINDS[int(draw.integers(len(KINDS)))](draw)
    form = str(draw.choice(["tensor", "tuple", "list", "mapping"]))
    dtype = FLOATS[int(draw.integers(len(FLOATS)))]
    loss = str(draw.choice(["", "", "", "first", "last"]))
    if isinstance(made.class_axis, list) and loss:
        made.class_axis = ["none", *made.class_axis] if loss == "first" else [*made.class_axis, "none"]
    loader, example = batches(draw, made)
    dense, worse = (Known(values, form, dtype, loss) for values in (made.dense, made.worse))
    try:
        workload = hwprune.Workload("fuzz", dense, example, loader, loader, metric=made.metric, class_axis=made.class_axis)
        data_checks.check_batches(workload, dense)
        read = list(workload.batches("validation"))
        ours = [all_tensors(worse(*inputs)) for inputs, _ in read]
        theirs = [all_tensors(dense(*inputs)) for inputs, _ in read]
        targets = [target for _, target in read]
        told = data_checks.how_read(workload.scoring, theirs, targets)
        got = scoring.score(workload.scoring, ours, targets, theirs)
        drop = scoring.paired_drop(workload.scoring, ours, theirs, targets)
        spread = scoring.divergence(workload.scoring, ours, theirs, targets)
        confidence.estimated_drop(workload.scoring, ours, theirs, targets, 1.0, drop)
    except HwpruneError as error:
        return made.name, REFUSED if made.ambiguous else "REFUSED", " ".join(str(error).split())[:200]
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        return made.name, "TRACEBACK", f"{type(error).__name__}: {error} ({last.filename.rpartition('/')[2]}:{last.lineno})"
    wanted = made.wanted()
    if abs(got.value - wanted) > CLOSE * max(1.0, abs(wanted)):
        if made.ambiguous and told and "That is a guess" in told:
            return made.name, GUESSED, told
        shapes = f"{[x.shape for x in made.dense]} labels {np.shape(made.labels)} axis {made.class_axis}"
        return made.name, "WRONG", f"{got.value:.5f}, by hand {wanted:.5f}; {shapes} {made.notes}"
    if not spread.value >= 0:
        return made.name, "WRONG", f"divergence {spread.value}"
    return made.name, RIGHT, ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    heading("Workloads of all shapes, scored as by hand")
    start = time.time()
    verdicts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    findings = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        kind, verdict, words = examine(seed)
        verdicts[kind][verdict] += 1
        if verdict not in (RIGHT, REFUSED, GUESSED):
            findings += 1
            print(f"seed {seed}: {kind}: {verdict}: {words}")
    print(f"\n{arguments.count} workloads in {time.time() - start:.0f} s, {findings} findings\n")
    print("| kind | right | refused, because it can't be known | read by a guess that is told | findings |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, counts in sorted(verdicts.items()):
        fine = [counts[verdict] for verdict in (RIGHT, REFUSED, GUESSED)]
        print(f"| {kind} | {' | '.join(map(str, fine))} | {sum(counts.values()) - sum(fine)} |")
    raise SystemExit(findings > 0)


if __name__ == "__main__":
    main()
