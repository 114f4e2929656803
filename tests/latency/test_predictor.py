"""The latency model in worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwprune.latency import predictor
from hwprune.latency.latency_table import Entry, LatencyTable
from hwprune.latency.predictor import LatencyModel, Regressor, measure_until_certain
from hwprune.latency.splitting import split


def network(widths, size=16):
    """A chain of 3x3 convolutions with ReLU; segments of it."""
    nodes, stored, before = [], [], 8
    for number, width in enumerate(widths):
        source = "x" if number == 0 else f"r{number - 1}"
        nodes += [
            helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], name=f"conv{number}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"], name=f"relu{number}"),
        ]
        stored.append(onnx.numpy_helper.from_array(np.zeros((width, before, 3, 3), np.float32), f"w{number}"))
        before = width
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, size, size])],
        [helper.make_tensor_value_info(f"r{len(widths) - 1}", TensorProto.FLOAT, None)], stored,
    )  # fmt: skip
    return split(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def truth(segment):
    """A machine with blocks of 16 output channels."""
    f = segment.features()
    return 2e-6 + f["rows"] * -(-f["columns"] // 16) * 16 * f["inner"] * 2e-12 + f["bytes"] * 1e-11


def entry(segment, seconds=None):
    return Entry(segment.signature, segment.anchor, segment.family, seconds or truth(segment), 0.0, segment.features())


def widths(random, layers=5):
    return [int(random.integers(1, 9)) * 8 for _ in range(layers)]


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    made = LatencyTable({"device": "x"})
    for _ in range(40):
        for segment in network(widths(random)):
            made.entries[segment.signature] = entry(segment)
    return made


def test_without_whole_models_the_prediction_is_the_sum(table):
    segments = network([16, 32, 16, 32, 16])
    for segment in segments:
        table.entries[segment.signature] = entry(segment)
    found = LatencyModel(table, "n").predict(segments)
    assert found.seconds == pytest.approx(sum(map(truth, segments)), rel=1e-9)
    assert found.known == 1.0
    assert found.sd > 0


def test_unmeasured_segments_are_predicted_within_their_own_error(table):
    random = np.random.default_rng(1)
    model = LatencyModel(table, "n")
    unseen = [s for _ in range(20) for s in network(widths(random)) if s.signature not in table.entries]
    assert len(unseen) > 10
    regressor = model.regressor("Conv")
    errors = [np.log(model.segment(s)[0] / truth(s)) for s in unseen]
    assert regressor.error < 0.1
    assert float(np.sqrt(np.mean(np.square(errors)))) < 3 * regressor.error
    assert all(model.segment(s)[1] > 0 and not model.segment(s)[2] for s in unseen)


def test_regressor_error_is_held_out():
    """On times that have nothing to do with the features no regressor can be good, and it says so."""
    random = np.random.default_rng(2)
    entries = [entry(s, float(random.lognormal(-9, 1))) for _ in range(12) for s in network(widths(random))]
    assert Regressor(entries).error > 0.5


def test_thirty_whole_models_correct_what_fusion_does(table):
    """The fused network takes 70 % of the sum plus a constant; convolutions of one size are off by more."""
    random = np.random.default_rng(3)

    def fused(segments):
        return 3e-5 + sum((0.6 if s.family.endswith("16x16") else 0.8) * truth(s) for s in segments)

    model = LatencyModel(table, "n")
    tests = [network(widths(random)) for _ in range(30)]
    for segments in tests:
        for segment in segments:
            table.entries[segment.signature] = entry(segment)
    before = np.median([abs(model.predict(s).seconds / fused(s) - 1) for s in tests])
    for number in range(30):
        segments = network(widths(random))
        for segment in segments:
            table.entries[segment.signature] = entry(segment)
        noisy = fused(segments) * float(np.exp(random.normal(0, 0.007)))
        table.observe("n", str(number), segments, noisy, 0.005 * noisy)
    table.observe("another network", "x", tests[0], 1.0, 0.0)  # must not count
    model = LatencyModel(table, "n")
    after = [abs(model.predict(s).seconds / fused(s) - 1) for s in tests]
    inside = np.mean([abs(model.predict(s).seconds - fused(s)) < 1.96 * model.predict(s).sd for s in tests])
    assert before > 0.1
    assert np.median(after) < 0.01
    assert inside >= 0.9


def test_a_measured_model_costs_what_was_measured(table):
    segments = network([16, 32, 16, 32, 16])
    table.observe("n", "dense", segments, 5e-4, 1e-6)
    for segment in segments:
        table.entries[segment.signature] = entry(segment)
    found = LatencyModel(table, "n").predict(segments)
    assert found.seconds == 5e-4
    assert found.relative < 0.01


def test_an_observation_that_is_replaced_is_fitted_again(table, monkeypatch):
    segments, shorter = network([16, 32, 16, 32, 16]), network([16, 32, 16, 32])
    for segment in (*segments, *shorter):
        table.entries[segment.signature] = entry(segment)
    table.observe("n", "dense", segments, 5e-4, 1e-6)
    model, fits = LatencyModel(table, "n"), []
    look = LatencyModel.observations
    monkeypatch.setattr(LatencyModel, "observations", lambda self: [fits.append(1), look(self)][1])
    assert model.predict(segments).seconds == 5e-4
    before = model.predict(shorter).seconds
    assert len(fits) == 1  # nothing changed in between
    table.observe("n", "dense", segments, 1e-3, 1e-6)  # measured again: as many observations as before
    assert model.predict(segments).seconds == 1e-3
    assert model.predict(shorter).seconds > before
    assert len(fits) == 2


def test_segments_are_guessed_again_when_the_table_has_grown():
    """A guess of an empty table must not outlive it."""
    table, segments = LatencyTable({}), network([16, 24, 32, 40, 48])
    bench = FakeBench({s.signature: s for s in segments})
    model = LatencyModel(table, "n")
    assert model.segment(segments[-1])[1] > model.segment(segments[-1])[0]  # nothing is known
    table.fill(bench, segments[:-1])
    seconds, sd, measured = model.segment(segments[-1])
    assert not measured
    assert sd == pytest.approx(predictor.UNKNOWN * seconds)


class FakeBench:
    """Measures what the truth says, and counts."""

    def __init__(self, known):
        self.known, self.asked = known, []

    def micro(self, folder, pieces, rounds):
        self.asked += pieces
        return {
            "pieces": {p: [truth(self.known[p]) / 5e-5, 0.0] for p in pieces},
            "errors": {},
            "reference_s": 5e-5,
            "call_s": 0.0,
        }


def test_too_uncertain_predictions_are_measured_and_certain_ones_are_not(table):
    segments = network([56, 40, 24, 56, 64], size=12)  # another image size: nothing like it is in the table
    bench = FakeBench({s.signature: s for s in segments})
    model = LatencyModel(table, "n")
    assert model.predict(segments).relative > predictor.UNCERTAIN
    found = measure_until_certain(model, segments, bench)
    assert bench.asked
    assert found.relative <= predictor.UNCERTAIN or found.known == 1.0
    assert found.seconds == pytest.approx(sum(map(truth, segments)), rel=0.15)
    again = len(bench.asked)
    measure_until_certain(model, segments, bench)
    assert len(bench.asked) == again


def test_an_empty_table_still_answers_and_says_that_it_does_not_know():
    found = LatencyModel(LatencyTable({}), "n").predict(network([16, 16]))
    assert found.seconds > 0
    assert found.relative > 0.5
    assert found.known == 0.0
