"""OpenVINO's own files with the cache as a state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hwprune.errors import RunError
from hwprune.records import target as targets
from hwprune.streaming import road, stateful_openvino
from hwprune.streaming.assembled_onnx import write_assembled
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.phases import Phases, Tokens
from hwprune.streaming.stateful_openvino import FILE, write_stateful
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import llama, text, whole

openvino = pytest.importorskip("openvino")


TOLD = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = llama(tmp_path / "m")
    shape = write_assembled(LanguageFolder(folder), tmp_path / "model.onnx")

    def full(_model, file, **_):
        Path(file).write_text("half")
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(RunError, match="can't be written, or does not run: .*iostream"):
        write_stateful(tmp_path / "model.onnx", shape, tmp_path / "openvino", torch.arange(12)[None])
    assert not list(tmp_path.glob("openvino*"))


def by_openvino(file, data):
    """The perplexity of the file that is handed over, as its user would compute it."""
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    request, found = openvino.Core().compile_model(str(file), "CPU", properties).create_infer_request(), []
    for window in data.read(file.parent.parent)[1]:
        count = len(window)
        fed = {
            "input_ids": window[None].numpy(), "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count)[None], "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        request.reset_state()
        logits = torch.from_numpy(np.array(request.infer(fed)[0])[0, :-1])
        found.append(torch.nn.functional.cross_entropy(logits, window[1:]))
    return float(torch.stack(found).mean().exp())


def test_a_target_that_is_openvino_gets_its_file_and_it_generates(tmp_path):
    folder, words = llama(tmp_path / "m"), text(tmp_path / "words.txt")
    (folder / "notes.txt").write_text("not for others")
    data = TextData(words, length=16, most=6, judged=3)
    facts = road.prune_folder(
        folder, data, SweepPlan([("neuron", 0.25)], "obs", "obs"), tmp_path / "out", onnx=True, tokens=Tokens(8, 4),
        target=targets.load("cpu-openvino"), quantize=("int8",), score=True,
    )  # fmt: skip
    assert facts["openvino"] == f"openvino/{FILE}" and "OpenVINO" in facts["target"]
    assert Phases.from_json(facts["phases"]).decode.value > 0
    eight = facts["quantised"]["int8"]
    assert eight["openvino"] == f"openvino-int8/{FILE}" and Phases.from_json(eight["phases"]).decode.value > 0
    for place in (facts["openvino"], eight["openvino"]):  # what Optimum and the tokenizers' converter read beside it
        names = {one.name for one in (tmp_path / "out" / place).parent.iterdir()}
        assert names == {FILE, "openvino_model.bin", *TOLD}
    sizes = [(tmp_path / "out" / place).with_suffix(".bin").stat().st_size for place in (facts["openvino"], eight["openvino"])]
    assert sizes[1] < 0.6 * sizes[0]  # the embedding has 16 bits, norms and scales have 32
    assert eight["perplexity"] == pytest.approx(by_openvino(tmp_path / "out" / eight["openvino"], data), rel=1e-5)
    assert eight["perplexity"] == pytest.approx(facts["perplexity"], rel=0.1)
    # Token by token, as its user would: what is said is what transformers says of the folder.
    request = openvino.Core().compile_model(str(tmp_path / "out" / facts["openvino"]), "CPU").create_infer_request()
    ids = torch.tensor([[5, 9, 2, 7]])
    wanted = whole(tmp_path / "out").generate(ids, max_new_tokens=6, do_sample=False)[0, 4:].tolist()
    given, found, past = ids.numpy(), [], 0
    for _ in range(6):
        end = past + given.shape[1]
        fed = {
            "input_ids": given, "attention_mask": np.ones((1, end), np.int64), "position_ids": np.arange(past, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        given, past = np.array([[int(request.infer(fed)[0][0, -1].argmax())]]), end
        found.append(int(given[0, 0]))
    assert found == wanted


def test_a_file_that_computes_something_else_is_not_handed_over(tmp_path, monkeypatch):
    folder = llama(tmp_path / "m")
    path = tmp_path / "model.onnx"
    shape = write_assembled(LanguageFolder(folder), path)
    ids = torch.arange(12)[None]
    write_stateful(path, shape, tmp_path / "right", ids)
    real = stateful_openvino._wanted
    monkeypatch.setattr(stateful_openvino, "_wanted", lambda *args: 1.01 * real(*args))
    with pytest.raises(RunError, match="computes something else"):
        write_stateful(path, shape, tmp_path / "wrong", ids)
    assert (tmp_path / "right" / FILE).is_file() and not (tmp_path / "wrong").exists()
