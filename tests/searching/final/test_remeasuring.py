"""Times by layer: all models take turns, and the least of each layer counts."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import onnx

from hwprune.searching.final import remeasuring


def test_other_work_on_the_machine_is_not_taken_for_a_layers_own(tmp_path, monkeypatch):
    order, times = [], {"dense": iter([9.0, 4.0, 5.0]), "1": iter([2.0, 8.0, 3.0])}

    class Bench:
        def load(self, key, path):
            self.which = path.stem

        def facts(self, key):
            return {"kernels": 1}

        def profile(self, key, example, runs):
            order.append(self.which)
            return [{"name": "w", "seconds": next(times[self.which])}]

    @contextmanager
    def make():
        yield Bench()

    monkeypatch.setattr(onnx, "load", lambda *_, **__: onnx.ModelProto())
    monkeypatch.setattr(remeasuring.layer_times, "times", lambda operators, model: {"w": operators[0]["seconds"]})
    models = {name: Path(tmp_path / f"{name}.onnx") for name in times}
    found = remeasuring._by_layer(SimpleNamespace(dense=SimpleNamespace(example=None)), models, make)
    assert order == ["dense", "1"] * 3
    assert {key: one["layers"] for key, one in found.items()} == {"dense": {"w": 4.0}, "1": {"w": 2.0}}
