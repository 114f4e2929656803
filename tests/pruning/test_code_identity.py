"""What tells one loss or metric from another: two that compute different things have different texts, always the same ones."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwprune.pruning import database
from hwprune.pruning.code_identity import identity_of
from hwprune.workload import metrics


def loaded(folder, text, name="hwprune_workload_losses"):
    """A module from a file that is written anew, as an edited one is."""
    path = folder / "losses.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _forget():
    yield
    sys.modules.pop("hwprune_workload_losses", None)


HEADER = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
SCALE = 2.0


def squared(outputs, targets):
    return SCALE * (outputs - targets).square().mean()


def with_default(outputs, targets, weight=1.0, *, power=2):
    return weight * (outputs - targets).abs().pow(power).mean()


def closed(weight):
    def loss(outputs, targets):
        return weight * (outputs - targets).abs().mean()

    return loss


class Counting:
    """A loss that is an object."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, outputs, targets):
        return self.weight * F.mse_loss(outputs, targets)

    def method(self, outputs, targets):
        return self.weight * F.l1_loss(outputs, targets)


BODY = HEADER + (
    "class Base(nn.Module):\n    def part(self, o, t):\n        return ({base}).mean()\n"
    "class Loss(Base):\n    def forward(self, o, t):\n        return {own} * self.part(o, t)\n"
)


def test_an_edited_forward_is_another_loss(tmp_path):
    first = identity_of(loaded(tmp_path, BODY.format(base="o - t", own="1.0")).Loss())
    assert identity_of(loaded(tmp_path, BODY.format(base="o - t", own="1.0")).Loss()) == first
    assert identity_of(loaded(tmp_path, BODY.format(base="o - t", own="2.0")).Loss()) != first
    assert identity_of(loaded(tmp_path, BODY.format(base="o + t", own="1.0")).Loss()) != first


def test_an_edited_helper_of_a_loss_is_another_loss(tmp_path):
    text = HEADER + "RATE = {rate}\ndef part(o, t):\n    return ({part}).mean()\ndef loss(o, t):\n    return RATE * part(o, t)\n"
    first = identity_of(loaded(tmp_path, text.format(rate=1, part="o - t")).loss)
    assert identity_of(loaded(tmp_path, text.format(rate=1, part="o - t")).loss) == first
    assert identity_of(loaded(tmp_path, text.format(rate=2, part="o - t")).loss) != first
    assert identity_of(loaded(tmp_path, text.format(rate=1, part="o + t")).loss) != first


class Nested(nn.Module):
    def __init__(self, weight, inner):
        super().__init__()
        self.weight, self.inner = weight, inner
        self.register_buffer("table", torch.full((3,), float(weight)), persistent=False)

    def forward(self, outputs, targets):
        return self.weight * self.inner(outputs, targets)


class Holder:
    __slots__ = ("items",)

    def __init__(self, items):
        self.items = items


DIFFERENT = {
    "label smoothing": lambda: (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "ignored label": lambda: (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=0)),
    "state": lambda: (nn.CrossEntropyLoss(torch.ones(3)), nn.CrossEntropyLoss(torch.arange(3.0))),
    "attribute of a submodule": lambda: (Nested(1, nn.HuberLoss(delta=1.0)), Nested(1, nn.HuberLoss(delta=2.0))),
    "buffer that is not saved": lambda: (Nested(1, nn.MSELoss()), Nested(2, nn.MSELoss())),
    "default": lambda: (with_default, functools.partial(with_default, power=3)),
    "argument of a partial": lambda: (functools.partial(with_default, weight=1.0), functools.partial(with_default, weight=2.0)),
    "module in a partial": lambda: (
        functools.partial(Nested.forward, Nested(1, nn.HuberLoss(delta=1.0))),
        functools.partial(Nested.forward, Nested(1, nn.HuberLoss(delta=3.0))),
    ),
    "closure": lambda: (closed(1.0), closed(2.0)),
    "tensor in a closure": lambda: (closed(torch.zeros(2000)), closed(torch.zeros(2000).index_fill(0, torch.tensor(1000), 1.0))),
    "object in a closure": lambda: (closed(Holder([1, {"a": 2}])), closed(Holder([1, {"a": 3}]))),
    "two on one line": lambda: (lambda o, t: (o - t).abs().mean(), lambda o, t: (o + t).abs().mean()),
    "object": lambda: (Counting(1.0), Counting(2.0)),
    "method": lambda: (Counting(1.0).method, Counting(2.0).method),
    "type of a number": lambda: (closed(1), closed(True)),
    "metric's name": lambda: (metrics.Metric("a", squared), metrics.Metric("b", squared)),
    "metric's direction": lambda: (metrics.Metric("a", squared), metrics.Metric("a", squared, higher_is_better=False)),
    "metric's reduction": lambda: (metrics.Metric("a", squared), metrics.Metric("a", squared, exp=True)),
    "metric's function": lambda: (metrics.Metric("a", squared), metrics.Metric("a", with_default)),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_computes_something_else_has_another_text(case):
    first, second = DIFFERENT[case]()
    assert identity_of(first) != identity_of(second)
    again, _ = DIFFERENT[case]()
    assert identity_of(again) == identity_of(first)


def test_an_edited_neighbour_is_another_loss(tmp_path, monkeypatch):
    text = HEADER + "import hw_test_neighbour\ndef loss(o, t):\n    return hw_test_neighbour.part(o, t)\n"
    monkeypatch.syspath_prepend(tmp_path)
    texts = set()
    for part in ("o - t", "o + t"):
        (tmp_path / "hw_test_neighbour.py").write_text(f"def part(o, t):\n    return ({part}).mean()\n# {part}\n")
        sys.modules.pop("hw_test_neighbour", None)
        texts.add(identity_of(loaded(tmp_path, text).loss))
    sys.modules.pop("hw_test_neighbour", None)
    assert len(texts) == 2


def test_a_scripted_loss_is_told_by_its_code():
    def difference(o, t):
        return (o - t).mean()

    def total(o, t):
        return (o + t).mean()

    assert identity_of(torch.jit.trace(difference, (torch.ones(2), torch.ones(2)))) != identity_of(
        torch.jit.trace(total, (torch.ones(2), torch.ones(2)))
    )


def test_changed_defaults_and_globals_are_told(monkeypatch):
    before = identity_of(with_default), identity_of(squared)
    monkeypatch.setattr(with_default, "__defaults__", (3.0,))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    changed = identity_of(with_default)
    monkeypatch.setattr(with_default, "__defaults__", (1.0,))
    monkeypatch.setattr(with_default, "__kwdefaults__", {"power": 3})
    assert len({before[0], changed, identity_of(with_default)}) == 3
    assert identity_of(squared) != before[1]


def test_what_holds_itself_ends():
    loss = Counting(1.0)
    loss.again = [loss, {loss}, {loss: loss}]
    assert identity_of(loss) == identity_of(loss)


def test_the_text_is_the_same_in_every_process(tmp_path):
    """No addresses, no order of sets, no file's place: other processes and machines read the same database."""
    code = (
        "import sys; from hwprune.pruning.code_identity import identity_of; from hwprune.workload import loading\n"
        "w = loading._function(sys.argv[1] + ':loss'); print(identity_of(w))"
    )
    text = HEADER + (
        "class Thing:\n    pass\nNAMES = {'a', 'b', 'c', 'dd', 'eee'}\nTHING = Thing()\nGENERATOR = torch.Generator()\n"
        "def loss(o, t):\n    return (THING, NAMES, GENERATOR, lambda x: x, F.mse_loss(o, t))\n"
    )
    texts = set()
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "losses.py").write_text(text)
        command = [sys.executable, "-c", code, str(tmp_path / seed / "losses.py")]
        texts.add(subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout)
    assert len(texts) == 1
    assert "0x" not in texts.pop()


def test_an_opaque_model_is_told_by_its_parts_code(tmp_path):
    """What can't be traced has no graph; an edited part of it computes other statistics with the same weights."""
    text = HEADER + (
        "class Part(nn.Module):\n    def forward(self, x):\n        return {part}\n"
        "class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.fc, self.part = nn.Linear(4, 4), Part()\n"
        "    def forward(self, x):\n        return self.part(self.fc(x)) if float(x.sum()) > 0 else self.fc(x)\n"
    )
    from hwprune.structure.torch.opaque import OpaqueGraph

    prints = {
        database.graph_fingerprint(OpaqueGraph(loaded(tmp_path, text.format(part=part)).Model(), (torch.ones(1, 4),), "").module)
        for part in ("x.relu()", "x.sigmoid()")
    }
    assert len(prints) == 2
