"""A pruned language model taught by the dense one: the next word's distribution, token by token (Hinton et al. 2015; for pruned
models LLM-Pruner, Sheared LLaMA and Minitron, Muralidharan et al. 2024, arXiv 2407.14679).

The dense model runs once, block by block; of each token its likeliest words are kept on disk, and the rest as one. Then the
pruned model alone is in memory, and is trained. Windows that take no part decide whether what was learned stays. Embeddings stay
as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError
from hwprune.streaming import cached_onnx
from hwprune.streaming.blocks import block_of, entering, leaving
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates

LIKELIEST = 128
"""Words of each token's distribution that are kept. The rest counts as one word."""
HELD_EVERY = 12
"""One window in so many takes no part."""
MOST_HELD = 8
BATCH = 2
"""Windows in a step."""
RATE = 2e-4
"""Between two that were tried on SmolLM2 with 30,000 tokens: 1e-4 came nearer to the dense model on held-out text (0.315 nats a
token, 0.321 with 3e-4), 3e-4 to the right words of other text (perplexity 36.5 and 35.0)."""
WARM_UP = 0.1
"""Part of the steps in which the rate grows; then it falls as a cosine to a tenth."""
LONGEST = 1.0
"""Norm to which a step's gradient is shortened."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """What training did.

    Attributes:
        tokens: that were learned from, with repetitions.
        seconds: of the training alone; ``teacher_seconds``: of the dense model.
        before, after: nats a token between dense and pruned model, on windows that took no part.
        kept: what was learned is in the folder.
    """

    tokens: int
    seconds: float
    teacher_seconds: float
    before: float
    after: float
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


class Targets:
    """The dense model's distributions, in files.

    Args:
        path: folder for the files.
        windows, tokens: how many.
        words: of the vocabulary.
    """

    def __init__(self, path: Path, windows: int, tokens: int, words: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.count = min(LIKELIEST, words)
        size = windows * tokens * self.count
        shape = (windows, tokens, self.count)
        self._words = torch.from_file(str(path / "words"), shared=True, size=size, dtype=torch.int32).view(shape)
        self._logs = torch.from_file(str(path / "logs"), shared=True, size=size, dtype=torch.float32).view(shape)

    def write(self, window: int, logits: torch.Tensor) -> None:
        """Keep what the dense model says of a window: (tokens, words)."""
        logs, words = logits.float().log_softmax(-1).topk(self.count, dim=-1)
        self._words[window], self._logs[window] = words.int(), logs

    def divergence(self, window: int, logits: torch.Tensor) -> torch.Tensor:
        """Mean KL of the dense distribution and another, (tokens, words), in nats; the rest of the words counts as one."""
        words, wanted = self._words[window].long(), self._logs[window]
        found = logits.float().log_softmax(-1).gather(-1, words)
        likeliest = (wanted.exp() * (wanted - found)).sum(-1)
        rest, other = (_rest(one) for one in (wanted, found))
        return (likeliest + rest.exp() * (rest - other)).mean()


def _rest(logs: torch.Tensor) -> torch.Tensor:
    """Log-probability of all other words."""
    return torch.log1p(-logs.exp().sum(-1).clamp(max=1 - 1e-6))


def count_of(text: str) -> int:
    """``30000``, ``30k`` or ``2M``; 0: it is no such number."""
    factor = {"k": 1000, "M": 1_000_000}.get(text[-1:], 1)
    digits = text if factor == 1 else text[:-1]
    return int(digits) * factor if digits.isdecimal() else 0


def tokens_of(text: str) -> int:
    """``distill:TOKENS``, such as distill:100k. Raises `UsageError`."""
    name, _, count = text.partition(":")
    if name != "distill" or not count_of(count):
        raise UsageError(f"--recover of a language model takes distill:TOKENS, such as distill:100k, got {text!r}")
    return count_of(count)


def distil(
    place: Path, teacher: LanguageFolder, ids: torch.Tensor, tokens: int, work: Path, step: Tell = silent, rate: float = RATE
) -> Distilled:
    """Train the model in a folder, and write what it has learned there.

    Args:
        place: the pruned model's folder; the whole model is in memory meanwhile, four times in 32 bits.
        ids: (windows, tokens) of text that judges nothing.
        tokens: to learn from; windows come again where there are fewer.
        work: folder for the dense model's distributions.
        rate: of AdamW, at its height.

    Raises:
        UsageError: there are less than two windows.
    """
    if len(ids) < 2:
        raise UsageError("distillation needs at least two windows of text")
    steps = max(1, math.ceil(tokens / (ids.shape[1] * BATCH)))
    held = list(range(HELD_EVERY - 1, len(ids), HELD_EVERY))[:MOST_HELD] or [len(ids) - 1]
    learned = [window for window in range(len(ids)) if window not in held][: steps * BATCH]
    started = time.monotonic()
    targets = teacher_words(teacher, ids, [*held, *learned], work / "teacher", step)
    taught = time.monotonic()
    model: Any = cached_onnx.loaded(place)
    parameters = _trainable(model, teacher.blocks)
    before = _held_out(model, targets, ids, held)
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda number: _factor(number, steps))
    draw = torch.Generator().manual_seed(0)
    order: list[int] = []
    for number in range(steps):
        step("teaching", number, steps)
        optimiser.zero_grad(set_to_none=True)
        for _ in range(BATCH):
            if not order:
                order = torch.randperm(len(learned), generator=draw).tolist()
            window = learned[order.pop()]
            logits = model(input_ids=ids[window : window + 1], use_cache=False).logits[0]
            (targets.divergence(window, logits) / BATCH).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, LONGEST)
        optimiser.step()
        schedule.step()
    after = _held_out(model, targets, ids, held)
    if kept := after < before:
        _write(model, place)
    return Distilled(
        steps * BATCH * ids.shape[1], time.monotonic() - taught, taught - started, before, after, kept
    )  # fmt: skip


def _factor(number: int, steps: int) -> float:
    warm = max(1.0, WARM_UP * steps)
    if number < warm:
        return (number + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - warm) / max(1.0, steps - warm)))


@torch.no_grad()
def teacher_words(teacher: LanguageFolder, ids: torch.Tensor, which: Sequence[int], work: Path, step: Tell) -> Targets:
    """What the dense model says of some windows, block by block; ``work``: the folder for it."""
    ends = teacher.ends()
    first, given = entering(ends, teacher.blocks, ids[:1])
    states = HiddenStates(work.with_name("teacher-states"), (len(ids), *first.shape[1:]), torch.float32)
    for window in which:
        states.write(window, entering(ends, teacher.blocks, ids[window : window + 1])[0])
    for index in range(teacher.depth):
        step("the dense model's words", index, teacher.depth)
        block = block_of(teacher, index, given[index])
        for window in which:
            states.write(window, block(states.read(window)))
    targets: Targets | None = None
    for window in which:
        logits = leaving(ends, teacher.blocks, ids[window : window + 1], states.read(window))[0]
        targets = targets or Targets(work, len(ids), ids.shape[1], logits.shape[-1])
        targets.write(window, logits)
    states.remove()
    assert targets is not None  # there are windows
    return targets


def _trainable(model: nn.Module, blocks: str) -> list[nn.Parameter]:
    """What is in blocks, and norms; what looks words up stays."""
    found = []
    for name, parameter in model.named_parameters():
        learns = name.startswith(f"{blocks}.") or parameter.ndim == 1
        parameter.requires_grad_(learns)
        if learns:
            found.append(parameter)
    return found


@torch.no_grad()
def _held_out(model: Any, targets: Targets, ids: torch.Tensor, held: Sequence[int]) -> float:
    found = [
        float(targets.divergence(window, model(input_ids=ids[window : window + 1], use_cache=False).logits[0])) for window in held
    ]
    return sum(found) / len(found)


def _write(model: nn.Module, place: Path) -> None:
    """Put the model's tensors into the folder's files, in the types that they had."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    state = model.state_dict()
    for file in sorted(place.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        tensors = {name: state[name].detach().to(x.dtype).contiguous() if name in state else x for name, x in stored.items()}
        partial = file.with_suffix(".partial")
        save_file(tensors, str(partial), metadata={"format": "pt"})
        partial.rename(file)
