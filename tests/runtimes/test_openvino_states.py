"""A cache as a state of the model in OpenVINO, beside ONNX Runtime where it is an input."""

from __future__ import annotations

import numpy as np
import onnx
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


def users_decoder(path, order, kind=onnx.TensorProto.INT64, floats=onnx.TensorProto.FLOAT, axis=-1):
    """One attention as Optimum's exports have it: a mask and positions of its own, inputs in any order."""
    make, size = onnx.helper.make_node, 4
    type_ = onnx.helper.tensor_dtype_to_np_dtype(floats)
    draw = np.random.default_rng(0)
    stored = {name: (draw.normal(size=(10, size)) if name == "table" else draw.normal(size=(size, size))).astype(type_)
              for name in ("table", "q", "k", "v")}  # fmt: skip
    stored |= {"one": np.array(1, type_), "far": np.array(-1e4, type_), "axes": np.array([1, 2]), "heads": np.array([1])}
    nodes = [
        make("Gather", ["table", "input_ids"], ["embedded"]), make("Cast", ["position_ids"], ["where"], to=floats),
        make("Unsqueeze", ["where", "minus"], ["places"]), make("Sin", ["places"], ["angles"]),
        make("Add", ["embedded", "angles"], ["x"]),
        *(node for name in "qkv" for node in (
            make("MatMul", ["x", name], [f"{name}0"]), make("Unsqueeze", [f"{name}0", "heads"], [f"{name}1"]))),
        make("Concat", ["past_key_values.0.key", "k1"], ["present.0.key"], axis=2),
        make("Concat", ["past_key_values.0.value", "v1"], ["present.0.value"], axis=2),
        make("Transpose", ["present.0.key"], ["turned"], perm=[0, 1, 3, 2]), make("MatMul", ["q1", "turned"], ["scores"]),
        make("Cast", ["attention_mask"], ["seen"], to=floats), make("Sub", ["one", "seen"], ["gone"]),
        make("Mul", ["gone", "far"], ["hidden"]), make("Unsqueeze", ["hidden", "axes"], ["mask"]),
        make("Add", ["scores", "mask"], ["masked"]), make("Softmax", ["masked"], ["shares"], axis=axis),
        make("MatMul", ["shares", "present.0.value"], ["mixed"]), make("Squeeze", ["mixed", "heads"], ["logits"]),
    ]  # fmt: skip
    stored["minus"] = np.array([2])
    info = onnx.helper.make_tensor_value_info
    cache = [1, "past", size]
    inputs = {
        "input_ids": info("input_ids", onnx.TensorProto.INT64, ["batch", "n"]),
        "attention_mask": info("attention_mask", kind, ["batch", "all"]),
        "position_ids": info("position_ids", onnx.TensorProto.INT64, ["batch", "n"]),
        **{f"past_key_values.0.{one}": info(f"past_key_values.0.{one}", floats, ["batch", *cache]) for one in ("key", "value")},
    }
    outputs = [info("logits", floats, ["batch", "n", size])]
    outputs += [info(f"present.0.{one}", floats, ["batch", 1, "all", size]) for one in ("key", "value")]
    graph = onnx.helper.make_graph(
        nodes, "decoder", [inputs[name] for name in order], outputs,
        [onnx.numpy_helper.from_array(x, name) for name, x in stored.items()],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return path


PAST = [f"past_key_values.0.{one}" for one in ("key", "value")]
ORDERS = (["input_ids", "attention_mask", "position_ids", *PAST], ["attention_mask", "position_ids", *PAST, "input_ids"])
TYPES = onnx.TensorProto


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kind", "floats"),
    [(TYPES.INT64, TYPES.FLOAT), (TYPES.BOOL, TYPES.FLOAT), (TYPES.INT32, TYPES.FLOAT), (TYPES.INT64, TYPES.FLOAT16)],
)
def test_decoders_of_others_run_in_any_order_and_type(order, kind, floats, tmp_path, requests):
    path = users_decoder(tmp_path / "model.onnx", order, kind, floats)
    runners = [RUNTIMES[name].load(path, RuntimeSettings()) for name in ("openvino", "onnxruntime-cpu")]
    to, type_ = onnx.helper.tensor_dtype_to_np_dtype(kind), onnx.helper.tensor_dtype_to_np_dtype(floats)
    draw = np.random.default_rng(1)
    given = {
        "input_ids": draw.integers(0, 10, (2, 1)), "attention_mask": np.ones((2, 41), to), "position_ids": np.full((2, 1), 40),
        **{name: draw.normal(size=(2, 1, 40, 4)).astype(type_) for name in PAST},
    }  # fmt: skip
    given["attention_mask"][1, :5] = 0  # a padded text
    found, wanted = ([np.asarray(x, np.float32) for x in one.run([given[name] for name in order])] for one in runners)
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-2 if floats == TYPES.FLOAT16 else 1e-4)
    call = runners[0].bind([given[name] for name in order])
    before = lengths(requests[-1])
    call()
    assert {length + 1 for length in before} == lengths(requests[-1])  # one token went in, and no more
    assert requests[-1].get_tensor("attention_mask").shape[1] == max(lengths(requests[-1]))


@pytest.mark.parametrize("axis", [1, 2])
def test_a_softmax_over_something_else_is_no_attention(axis, tmp_path):
    path = users_decoder(tmp_path / "model.onnx", ORDERS[0], axis=axis)
    runners = [RUNTIMES[name].load(path, RuntimeSettings()) for name in ("openvino", "onnxruntime-cpu")]
    draw = np.random.default_rng(1)
    given = [draw.integers(0, 10, (1, 3)), np.ones((1, 8), np.int64), np.arange(5, 8)[None]]
    given += [draw.normal(size=(1, 1, 5, 4)).astype(np.float32) for _ in PAST]
    found, wanted = (one.run(given)[0] for one in runners)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
