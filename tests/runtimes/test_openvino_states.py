"""A cache as a state of the model in OpenVINO, beside ONNX Runtime where it is an input."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.runtimes import RUNTIMES, RuntimeSettings
from hwprune.runtimes.openvino_states import STEPS, StatefulRunner
from hwprune.streaming.assembled_onnx import write_assembled
from hwprune.streaming.folder import LanguageFolder
from tests.streaming.helpers import llama

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = llama(tmp_path_factory.mktemp("cache") / "m")
    path = folder / "model.onnx"
    return path, write_assembled(LanguageFolder(folder), path)


@pytest.fixture
def runner(file):
    return RUNTIMES["openvino"].load(file[0], RuntimeSettings())


@pytest.mark.parametrize("batch", [1, 3])
def test_a_prompt_and_what_follows_are_those_of_onnx_runtime(file, runner, batch):
    path, shape = file
    other = RUNTIMES["onnxruntime-cpu"].load(path, RuntimeSettings())
    ids = np.random.default_rng(0).integers(0, 60, (batch, 12))
    past = [shape.empty(batch, 0), shape.empty(batch, 0)]
    for start, end in ((0, 7), (7, 8), (8, 12)):  # each goes on with its own cache
        found, wanted = (one.run([ids[:, start:end], *kept]) for one, kept in zip((runner, other), past, strict=True))
        assert [x.shape for x in found] == [x.shape for x in wanted]
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3 * np.abs(two).max())
        past = [found[1:], wanted[1:]]
    (again,) = runner.run([ids[:, :7], *shape.empty(batch, 0)])[:1]  # nothing of before is left in it
    np.testing.assert_allclose(again, other.run([ids[:, :7], *shape.empty(batch, 0)])[0], rtol=1e-3, atol=1e-3)


def lengths(request):
    return {state.state.data.shape[2] for state in request.query_state()}


@pytest.fixture
def requests(monkeypatch):
    found, real = [], StatefulRunner._split

    def seen(self, inputs):
        made = real(self, inputs)
        found.append(made[0])
        return made

    monkeypatch.setattr(StatefulRunner, "_split", seen)
    return found


def test_single_tokens_are_timed_near_the_length_that_is_asked_for(file, runner, requests):
    _, shape = file
    call = runner.bind(shape.inputs(1, 1, 40))
    found = []
    for _ in range(3 * STEPS):
        call()
        (length,) = lengths(requests[-1])
        found.append(length)
        assert requests[-1].get_tensor("attention_mask").shape[1] == length  # as long as a program that generates makes it
        assert requests[-1].get_tensor("position_ids").data.tolist() == [[length - 1]]
    before = [length - 1 for length in found]  # what was there when the token came in
    assert min(before) == 40 - STEPS // 2 and max(before) == 40 + STEPS // 2 - 1


def test_each_prompt_starts_from_nothing(file, runner, requests):
    _, shape = file
    call = runner.bind(shape.inputs(1, 9, 0))
    for _ in range(3):
        call()
        assert lengths(requests[-1]) == {9}
