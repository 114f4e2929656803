"""Questions with choices, against the plain formula on the whole model."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from hwprune.errors import UsageError
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.likelihood import accuracy, mean_log_likelihoods, read_questions
from tests.streaming.helpers import whole


@torch.no_grad()
def by_hand(model, ids, start):
    logs = model(ids, use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])) / (ids.shape[1] - start)


def test_log_likelihoods_are_those_of_the_whole_model(folder):
    sequences = [
        (torch.tensor([[3, 9, 27, 14]]), 2),
        (torch.tensor([[5, 6, 7, 8, 9, 10]]), 1),
        (torch.tensor([[3, 9, 28, 40]]), 3),
    ]
    found = mean_log_likelihoods(LanguageFolder(folder), sequences)
    model = whole(folder)
    assert found == pytest.approx([by_hand(model, ids, start) for ids, start in sequences], rel=1e-4)


def test_the_share_of_right_answers(folder, tmp_path):
    model = whole(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    prompts = [f"w{i} w{i + 3} w{i + 5}" for i in range(6)]
    choices = [" w1 w2 w3", " w7", " w20 w9"]
    rows, right = [], 0
    for number, prompt in enumerate(prompts):
        scores = []
        for choice in choices:
            ids = torch.tensor([tokenizer(prompt + choice)["input_ids"]])
            scores.append(by_hand(model, ids, 3))
        answer = number % 3
        right += scores.index(max(scores)) == answer
        rows.append(json.dumps({"prompt": prompt, "choices": choices, "answer": answer}))
    (tmp_path / "q.jsonl").write_text("\n".join(rows) + "\n\n")
    assert accuracy(LanguageFolder(folder), tokenizer, read_questions(tmp_path / "q.jsonl")) == right / 6


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ('{"prompt": "a", "choices": ["b"]}', "'answer'"),
        ('{"prompt": "a", "choices": ["b"], "answer": 1}', "place of one of the choices"),
        ('{"prompt": "a", "choices": ["b", ""], "answer": 0}', "must not be empty"),
        ('{"prompt": "a", "choices": ["b"], "answer": true}', "place of one"),
    ],
)
def test_lines_that_are_no_questions_are_told(tmp_path, line, words):
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "choices": ["b"], "answer": 0}\n' + line)
    with pytest.raises(UsageError, match=words):
        read_questions(tmp_path / "q.jsonl")


def test_a_file_without_questions_is_told(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="no questions"):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(UsageError, match="no file"):
        read_questions(tmp_path / "other.jsonl")
