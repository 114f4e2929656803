"""OpenVINO's own operator for attention, put into what the exporter writes, for classes that are built in different ways."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import transformers

from hwprune.runtimes.openvino_attention import BEAMS, MASK, POSITIONS, fuse_attention
from hwprune.runtimes.openvino_states import EXACT_CACHE, state_pairs, where_they_stand, with_states
from hwprune.streaming import cached_onnx

openvino = pytest.importorskip("openvino")

SIZES = {
    "vocab_size": 62, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
CLASSES = {
    "Llama": {}, "Phi": {},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 8},  # blocks look back differently far
    "Cohere": {},  # angles are repeated by a shape that holds for one text
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # positions are learned
    "Gemma2": {"head_dim": 8},  # scores are bent before the softmax
}  # fmt: skip
OWN = {"Llama": {MASK, POSITIONS}, "Phi": {MASK, POSITIONS}, "Gemma3Text": {MASK, POSITIONS}, "Cohere": {MASK}, "GPT2": {MASK}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = {}

    def files(kind):
        if kind not in found:
            torch.manual_seed(0)
            config = getattr(transformers, f"{kind}Config")(**{**SIZES, **CLASSES[kind]})
            cls = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(kind, f"{kind}ForCausalLM")
            model = getattr(transformers, cls)(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.copy_(0.4 * torch.randn_like(parameter))
            shape = cached_onnx.cache_shape(model)
            found[kind] = (model, cached_onnx.write_cached_onnx(model, shape, tmp_path_factory.mktemp(kind) / "model.onnx"))
        return found[kind]

    return files


def compiled(path, **how):
    core = openvino.Core()
    model = core.read_model(str(path))
    return core.compile_model(
        with_states(model, state_pairs(model), **how), "CPU", {"INFERENCE_PRECISION_HINT": "f32", **EXACT_CACHE}
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_computes_what_transformers_does(made, kind):
    model, path = made(kind)
    ran = compiled(path, padded=False)
    operators = Counter(node.get_rt_info()["layerType"].astype(str) for node in ran.get_runtime_model().get_ops())
    assert operators["ScaledDotProductAttention"] == (2 if kind in OWN else 0)
    assert not (operators["Softmax"] and kind in OWN)  # and it is fused with its state: nothing of the long form is left
    ids = torch.randint(0, 60, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits.numpy()
    request, found = ran.create_infer_request(), []
    for start, end in ((0, 6), (6, 7), (7, 14)):
        place = where_they_stand(ran, np.ones((2, end), np.int64), end - start)
        assert place.keys() == {BEAMS}
        found.append(np.array(request.infer({0: ids[:, start:end].numpy()} | place)[0]))
    np.testing.assert_allclose(np.concatenate(found, axis=1), wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind != "GPT2"])
def test_a_padded_text_says_what_it_says_alone(made, kind):
    model, path = made(kind)
    ran = compiled(path)
    assert {item.get_any_name() for item in ran.inputs} == {"input_ids", BEAMS, *OWN[kind]}
    draw = torch.Generator().manual_seed(2)
    long, short = torch.randint(0, 60, (1, 12), generator=draw), torch.randint(0, 60, (1, 7), generator=draw)
    given = torch.cat([long, torch.cat([torch.full((1, 5), 61), short], dim=1)]).numpy()
    mask = np.ones((2, 12), np.int64)
    mask[1, :5] = 0
    request, found = ran.create_infer_request(), []
    for start, end in ((0, 8), (8, 12)):
        found.append(np.array(request.infer({0: given[:, start:end]} | where_they_stand(ran, mask[:, :end], end - start))[0]))
    logits = np.concatenate(found, axis=1)
    for row, ids in enumerate((long, short)):
        with torch.no_grad():
            wanted = model(input_ids=ids, use_cache=False).logits.numpy()[0]
        np.testing.assert_allclose(logits[row, -len(wanted) :], wanted, atol=1e-4 * np.abs(wanted).max())


def test_beams_take_the_cache_of_others(made):
    model, path = made("Llama")
    ran = compiled(path)
    texts = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(3))
    request = ran.create_infer_request()
    request.infer({0: texts[:, :8].numpy()} | where_they_stand(ran, np.ones((3, 8), np.int64), 8))
    chosen = np.array([2, 0, 0], np.int32)
    next_ones = np.array([[4], [5], [6]])
    found = request.infer({0: next_ones} | where_they_stand(ran, np.ones((3, 9), np.int64), 1) | {BEAMS: chosen})[0]
    whole = torch.cat([texts[chosen.tolist(), :8], torch.from_numpy(next_ones)], dim=1)
    with torch.no_grad():
        wanted = model(input_ids=whole, use_cache=False).logits[:, -1:].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_model_without_attention_stays_as_it_is():
    from openvino import opset13

    x = opset13.parameter([2, 3], np.float32)
    model = openvino.Model([opset13.softmax(x, 1)], [x])
    assert fuse_attention(model, masked=True) == 0 and len(model.inputs) == 1
