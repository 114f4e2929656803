"""Exported files have names that code can be written against, and take texts of any length."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hwprune.onnx_files import interface_names
from hwprune.onnx_files.to_onnx import to_onnx
from hwprune.structure.torch.capture import capture


class Texts(nn.Module):
    """Two inputs of tokens; the mask is compared with nothing, so that torch.export gives it sizes of its own."""

    def __init__(self, made):
        super().__init__()
        self.table, self.first, self.last, self.made = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 3), made

    def forward(self, input_ids, attention_mask):
        hidden = self.first(self.table(input_ids)) * attention_mask.unsqueeze(-1)
        return self.made(self.last(hidden.sum(1) / attention_mask.sum(1, keepdim=True)), hidden)


def exported(model, inputs, path):
    to_onnx(capture(model.eval(), inputs), inputs, path)
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (lambda logits, _: logits, ["output"]),
        (lambda logits, hidden: (logits, hidden), ["output_0", "output_1"]),
        (lambda logits, hidden: {"logits": logits, "states": hidden}, ["logits", "states"]),
        (lambda logits, hidden: {"logits": logits, "states": [hidden, 2 * hidden]}, ["logits", "states_0", "states_1"]),
        (lambda logits, _: {"first.weight": logits}, None),  # a weight has that name
        (lambda logits, _: {"linear": logits}, ["linear"]),  # a result in the middle is called so by the exporter
    ],
)
def test_names(tmp_path, made, names):
    inputs = torch.randint(0, 30, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    model = Texts(made)
    session = exported(model, inputs, tmp_path / "m.onnx")
    if names is not None:
        assert [one.name for one in session.get_outputs()] == names
    assert [one.shape for one in session.get_inputs()] == [["batch", "sequence"], ["batch", "sequence"]]
    assert session.get_outputs()[0].shape == ["batch", 3]


@pytest.mark.parametrize(("batch", "length"), [(1, 4), (5, 11)])
def test_any_batch_and_length(tmp_path, batch, length):
    inputs = torch.randint(0, 30, (1, 7)), torch.ones(1, 7, dtype=torch.int64)
    model = Texts(lambda logits, _: logits)
    session = exported(model, inputs, tmp_path / "m.onnx")
    ids, mask = torch.randint(0, 30, (batch, length)), torch.ones(batch, length, dtype=torch.int64)
    mask[0, 2:] = 0
    got = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), model(ids, mask).detach(), rtol=1e-4, atol=1e-5)


class OneLength(nn.Module):
    """Flattens its tokens, so that there is one length."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(30, 4), nn.Linear(4 * 7, 3)

    def forward(self, ids):
        return self.last(self.table(ids).flatten(1))


def test_a_model_with_one_length_keeps_it_and_a_free_batch(tmp_path):
    session = exported(OneLength(), (torch.randint(0, 30, (2, 7)),), tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == ["batch", 7]


def test_lengths_that_may_differ_have_names_of_their_own(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(30, 4), nn.Linear(8, 3)

        def forward(self, source, target):
            return self.last(torch.cat([self.table(source).mean(1), self.table(target).mean(1)], 1))

    inputs = torch.randint(0, 30, (2, 7)), torch.randint(0, 30, (2, 7))
    session = exported(Pair(), inputs, tmp_path / "m.onnx")
    assert [one.shape for one in session.get_inputs()] == [["batch", "sequence"], ["batch", "sequence_2"]]
    got = session.run(None, {"source": inputs[0].numpy(), "target": inputs[1][:, :5].numpy()})[0]
    assert got.shape == (2, 3)


def test_an_input_that_is_handed_on_keeps_its_name(tmp_path):
    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            return {"y": self.last(x), "x": x}

    session = exported(Through(), (torch.randn(2, 4),), tmp_path / "m.onnx")
    assert len(session.get_outputs()) == 2
    assert session.get_inputs()[0].shape[0] == interface_names.BATCH
