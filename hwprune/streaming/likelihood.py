"""Questions with choices: which continuation does the model find likelier?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError
from hwprune.streaming.blocks import block_of, entering, leaving
from hwprune.streaming.folder import LanguageFolder


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with continuations, one of which is right.

    Attributes:
        answer: place of the right one in ``choices``.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """The questions of a .jsonl file: ``{"prompt": "...", "choices": ["...", "..."], "answer": 0}`` a line.

    Raises:
        UsageError: there is no such file, or lines are no questions; all are named.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path} (--choices, looked in {Path.cwd()})")
    found, faults = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            one = Question(str(data["prompt"]), tuple(map(str, data["choices"])), data["answer"])
            if type(one.answer) is not int or not 0 <= one.answer < len(one.choices) or not all(one.choices):
                raise ValueError("answer must be the place of one of the choices, which must not be empty")
        except (ValueError, KeyError, TypeError) as error:
            faults.append(f"line {number}: {error}")
        else:
            found.append(one)
    if faults:
        raise UsageError(f'{path}: each line must be {{"prompt": "...", "choices": ["...", "..."], "answer": 0}}', faults[:10])
    if not found:
        raise UsageError(f"{path} holds no questions")
    return found


def accuracy(folder: LanguageFolder, tokenizer: Any, questions: Sequence[Question], step: Tell = silent) -> float:
    """Share of the questions whose right choice has the largest log-likelihood a token.

    Args:
        tokenizer: text -> tokens, as transformers has them.
    """
    sequences: list[tuple[torch.Tensor, int]] = []
    for question in questions:
        start = _tokens(tokenizer, question.prompt)
        for choice in question.choices:
            both = _tokens(tokenizer, question.prompt + choice)
            # A token may reach over the border; what the two have in common is the prompt.
            common = 0
            while common < min(len(start), len(both) - 1) and start[common] == both[common]:
                common += 1
            sequences.append((torch.tensor([both]), max(1, common)))
    means = mean_log_likelihoods(folder, sequences, step)
    right, place = 0, 0
    for question in questions:
        mine = means[place : place + len(question.choices)]
        right += max(range(len(mine)), key=mine.__getitem__) == question.answer
        place += len(question.choices)
    return right / len(questions)


@torch.no_grad()
def mean_log_likelihoods(
    folder: LanguageFolder, sequences: Sequence[tuple[torch.Tensor, int]], step: Tell = silent
) -> list[float]:
    """Mean log-likelihood of the tokens from a place on, for each of ((1, tokens), place); one block is in memory at a time."""
    ends = folder.ends()
    states: list[torch.Tensor] = []
    given: dict[int, list[dict[str, Any]]] = {}
    for ids, _ in sequences:
        hidden, more = entering(ends, folder.blocks, ids)
        states.append(hidden)
        given[ids.shape[1]] = more
    for index in range(folder.depth):
        step("answering questions", index, folder.depth)
        for length in sorted(given):
            block = block_of(folder, index, given[length][index])
            for place, (ids, _) in enumerate(sequences):
                if ids.shape[1] == length:
                    states[place] = block(states[place])
    found = []
    for (ids, start), hidden in zip(sequences, states, strict=True):
        logs = leaving(ends, folder.blocks, ids, hidden)[0, :-1].float().log_softmax(-1)
        found.append(float(logs.gather(1, ids[0, 1:, None])[start - 1 :].mean()))
    return found


def _tokens(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return found
