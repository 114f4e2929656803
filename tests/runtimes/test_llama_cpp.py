"""llama.cpp as a runtime: probabilities of the next token, prompts and single tokens, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune import runtimes
from hwprune.errors import UsageError
from hwprune.records import target as targets
from hwprune.runtimes import WALL, RuntimeSettings
from hwprune.searching.resolved_job import check_runtime
from hwprune.streaming import llama_files
from tests.streaming.helpers import gguf_llama

for package in ("xllamacpp", "gguf", "transformers"):
    pytest.importorskip(package)

IDS = np.arange(2, 12, dtype=np.int64)[None]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return gguf_llama(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def runner(file):
    return runtimes.get("llama.cpp").load(file, RuntimeSettings(options={"context": 256}))


def test_it_gives_probabilities_of_every_word(runner):
    (out,) = runner.run([IDS])
    assert out.shape[0] == 1 and np.exp(out.astype(float)).sum() == pytest.approx(1.0, abs=1e-3)
    assert not np.allclose(out, runner.run([IDS[:, ::-1]])[0], atol=1e-3)
    np.testing.assert_array_equal(out, runner.run([IDS])[0])


def test_a_timed_token_is_one_token_and_a_timed_prompt_all_of_them(runner, monkeypatch):
    ran = []
    complete = type(runner)._complete

    def counted(self, tokens, **given):
        made = complete(self, tokens, **given)
        ran.append(made["timings"]["prompt_n"])
        return made

    monkeypatch.setattr(type(runner), "_complete", counted)
    for inputs, expected in (([IDS], 10), ([IDS, np.array([9])], 1), ([IDS], 10)):
        call = runner.bind(inputs)
        ran.clear()
        for _ in range(3):
            call()
        assert ran == [expected] * 3


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([], "takes tokens"), ([IDS.astype(np.float32)], "takes tokens"), ([np.concatenate([IDS, IDS])], "one text at a time"),
        ([IDS, np.array([3])], "all but the last"), ([np.full((1, 4), 10**6)], "invalid tokens"), ([np.ones((1, 300), int)], "context"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_told(runner, inputs, reason):
    with pytest.raises(ValueError, match=reason):
        runner.bind(inputs)


def test_it_is_timed_by_the_wall_and_is_no_target_of_a_search():
    assert runtimes.get("llama.cpp").clock(RuntimeSettings(threads=1)) == WALL
    target = llama_files.cpu(100, targets.load("cpu"))
    assert target.threads == 1 and target.options == {"context": 256}
    with pytest.raises(UsageError, match="candidates are ONNX files"):
        check_runtime(target)
