"""The ONNX file with a cache says what the model says, prompt or single token, and is told apart from one that does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import numpy_helper

from hwprune.errors import RunError, UsageError
from hwprune.streaming import cached_onnx
from hwprune.streaming.cached_onnx import CacheShape, cache_shape, check_cached_onnx, loaded, write_cached_onnx
from tests.streaming.helpers import llama, whole


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model of grouped heads with a tied embedding, and its file."""
    folder = llama(tmp_path_factory.mktemp("cached"), depth=2)
    model = loaded(folder)
    shape = cache_shape(model)
    return folder, shape, write_cached_onnx(model, shape, folder / "onnx" / "model.onnx")


def test_what_is_kept_of_a_token(written):
    _, shape, _ = written
    assert shape == CacheShape((2, 2, 2, 2), (8, 8, 8, 8))
    assert shape.bytes_per_token == 4 * 4 * 2 * 8
    assert [x.shape for x in shape.empty(3, 5)] == [(3, 2, 5, 8)] * 4


def test_names_are_those_that_applications_look_for(written):
    model = onnx.load(str(written[2]))
    dims = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*model.graph.input, *model.graph.output)
    }
    assert list(dims)[:3] == ["input_ids", "past_key_values.0.key", "past_key_values.0.value"]
    assert dims["input_ids"] == ["batch", "sequence"] and dims["logits"] == ["batch", "sequence", 62]
    assert dims["past_key_values.1.value"] == ["batch", 2, "past_sequence", 8]
    assert dims["present.1.value"] == ["batch", 2, "past_sequence + sequence", 8]


def test_it_generates_what_transformers_generates(written):
    folder, shape, path = written
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    ids = np.array([[5, 9, 2], [7, 7, 30]])
    tokens, kept, found = ids, shape.empty(2, 0), ids
    for _ in range(10):
        logits, *kept = session.run(None, dict(zip(names, [tokens, *kept], strict=True)))
        tokens = logits[:, -1:].argmax(-1)
        found = np.concatenate([found, tokens], axis=1)
    wanted = whole(folder).generate(
        torch.from_numpy(ids),
        attention_mask=torch.ones(2, 3, dtype=torch.int64),
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=1,
    )
    assert np.array_equal(found, wanted.numpy())


@pytest.mark.parametrize("spoiled", ["weights", "past"])
def test_a_file_that_says_something_else_is_found_out(written, tmp_path, spoiled):
    folder, shape, path = written
    proto = onnx.load(str(path))
    if spoiled == "weights":
        tensor = next(t for t in proto.graph.initializer if sorted(t.dims) == [32, 48])
        tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name))
    else:  # keys that are handed on come of another layer
        for node in proto.graph.node:
            node.output[:] = [{"present.0.key": "present.1.key", "present.1.key": "present.0.key"}.get(x, x) for x in node.output]
            node.input[:] = [{"present.0.key": "present.1.key", "present.1.key": "present.0.key"}.get(x, x) for x in node.input]
    onnx.save(proto, str(tmp_path / "bad.onnx"))
    ids = torch.randint(0, 62, (1, 20), generator=torch.Generator().manual_seed(0))
    check_cached_onnx(path, loaded(folder), shape, ids)
    with pytest.raises(RunError, match=r"bad\.onnx"):
        check_cached_onnx(tmp_path / "bad.onnx", loaded(folder), shape, ids)


def test_a_model_without_keys_and_values_is_refused():
    config = transformers.MambaConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(UsageError, match="keeps something else than keys and values"):
        cache_shape(transformers.MambaForCausalLM(config).eval())


def test_a_model_that_can_not_be_exported_is_refused(written, tmp_path, monkeypatch):
    def forward(self, input_ids, past):
        if float(past[0].sum()) > 1:  # a branch on values
            return (input_ids,)
        return (input_ids + 1,)

    monkeypatch.setattr(cached_onnx.WithCache, "forward", forward)
    with pytest.raises(UsageError, match="with its cache can't be exported"):
        write_cached_onnx(loaded(written[0]), written[1], tmp_path / "x.onnx")
