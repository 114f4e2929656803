"""Language models as workloads in memory."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.workload import language, loading, scoring
from hwprune.workload.text_windows import TextData, next_tokens, windows
from hwprune.workload.workload import all_tensors
from tests.streaming.helpers import llama, losses, text, whole


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("language")
    llama(place / "model", depth=2)
    text(place / "a.txt")
    text(place / "b.txt", words=200, seed=1)
    return place


def test_perplexity_is_that_of_the_plain_formula(place):
    workload = loading.load(f"hf:{place / 'model'} text={place / 'a.txt'},{place / 'b.txt'} length=16")
    outputs, targets = [], []
    with torch.no_grad():
        for inputs, target in workload.batches("validation"):
            outputs.append(all_tensors(workload.model(*inputs)))
            targets.append(target)
    told = scoring.score(workload.scoring, outputs, targets, outputs).value
    ids = windows(place / "model", place / "b.txt", 16)[:6]  # twelve windows judge, half of them in the search
    assert told == pytest.approx(math.exp(float(losses(whole(place / "model"), ids).mean())), rel=1e-5)


def test_heads_neurons_and_the_hidden_width_are_found_though_the_model_caches(place):
    model = whole(place / "model")
    assert model.config.use_cache
    workload = loading.load(f"hf:{place / 'model'} text={place / 'a.txt'} length=16")
    axes = [unit for unit in Pruner(workload).units.values() if unit.axis is not None]
    # In each block: key-value groups, queries of a group, two parts of the heads' width, neurons; and the hidden width.
    assert sorted(unit.role for unit in axes).count("neuron") == 2
    assert {unit.role for unit in axes} == {"head", "head_dim", "neuron", "hidden"}


def test_a_model_that_surely_does_not_fit_is_sent_to_the_road_block_by_block(place, monkeypatch):
    """Three times its weights in 32 bits; one byte more, and it is loaded."""
    count = sum(p.numel() for p in whole(place / "model").parameters())
    words = f"hf:{place / 'model'} text={place / 'a.txt'} length=16"
    monkeypatch.setattr(language, "memory_limit", lambda: 12 * count - 1)
    with pytest.raises(UsageError, match="--format huggingface` and `hwprune.prune_folder` prune it block by block"):
        loading.load(words)
    monkeypatch.setattr(language, "memory_limit", lambda: 12 * count)
    assert loading.load(words).scoring.name == "perplexity"


def test_no_token_calibrates_and_judges(place):
    calibration, judged = TextData(place / "a.txt", length=16, most=1000, judged=1000).read(place / "model")
    whole_text = windows(place / "model", place / "a.txt", 16)
    assert torch.equal(torch.cat([calibration, judged]), whole_text)
    assert len(judged) == len(whole_text) - 3 * len(whole_text) // 4


def test_of_many_windows_some_are_taken_evenly(place):
    calibration, _ = TextData(place / "a.txt", place / "b.txt", length=16, most=5).read(place / "model")
    everything = windows(place / "model", place / "a.txt", 16)
    assert torch.equal(calibration, everything[[0, 31, 62, 93, 124]]) and len(everything) == 125


def test_targets_are_what_follows():
    assert next_tokens(torch.tensor([[3, 4, 5], [6, 7, 8]])).tolist() == [[4, 5, -100], [7, 8, -100]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("text={a} length=5000", "fewer than one window of 5000"),
        ("text={a},{b},{a}", "--text takes"),
        ("text={a} length=many", "length must be a whole number"),
        ("text={a} metric=top1", "takes no argument metric"),
        ("text=nothing.txt", r"no file nothing\.txt"),
        ("text={a} gguf=no.gguf", "no file .*no.gguf"),
        ("text={a} batch=0", "batch must be a whole number"),
    ],
)
def test_wrong_words_are_told(place, words, message):
    words = words.format(a=place / "a.txt", b=place / "b.txt")
    with pytest.raises(UsageError, match=message):
        loading.load(f"hf:{place / 'model'} {words}")


def test_without_a_text_the_way_is_told(place):
    with pytest.raises(UsageError, match=r"a language model takes --text file\.txt"):
        loading.load(f"hf:{place / 'model'}")


def test_a_text_in_another_encoding_is_told(place):
    (place / "latin.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(UsageError, match="no text in UTF-8"):
        windows(place / "model", place / "latin.txt", 4)
