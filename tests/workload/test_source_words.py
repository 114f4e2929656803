"""Paths with spaces and quotes, from the command line and from Python."""

from __future__ import annotations

import pytest

from hwprune.cli.main import main
from hwprune.workload import source_words

MODEL = """
import torch, hwprune
def workload(width=8):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))
    x = torch.randn(40, 6); data = [(x, net(x).argmax(1))]
    return hwprune.Workload("net", net.eval(), (x[:1],), data, data)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["demo:digits"],
        ["a.py:make", "width=3"],
        ["my models/a.py:make", "width=3"],
        ["it's/a.py:make"],
        ["m.onnx", "data=my data.npz", "metric=top1"],
        ['q"uote.onnx', "data=a'b.npz"],
        ["back\\slash.py:f"],
    ],
)
def test_there_and_back(words):
    assert source_words.split(source_words.join(words)) == words


def test_old_sources_read_as_before():
    assert source_words.split("demo:digits") == ["demo:digits"]
    assert source_words.split("a.py:f  width=3 name=x") == ["a.py:f", "width=3", "name=x"]
    assert source_words.split("it's.py:f") == ["it's.py:f"]


@pytest.mark.parametrize("name", ["my models", "a?b", "50% off", "#1", "ü", "it's", 'q"uote', "a  b"])
def test_folders_with_odd_names(tmp_path, monkeypatch, name, capsys):
    (tmp_path / name).mkdir()
    (tmp_path / name / "net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    out = f"{name}/out {name}"
    assert main(["apply", "neuron=0.5", f"{name}/net.py:workload", "width=12", "--out", out, "--quiet"]) == 0
    assert (tmp_path / out / "model.onnx").is_file()
    assert main(["inspect", f"{name}/net.py:workload"]) == 0
    capsys.readouterr()


def test_a_path_that_nobody_quoted(tmp_path, monkeypatch):
    from hwprune.workload import loading

    (tmp_path / "my models").mkdir()
    (tmp_path / "my models" / "net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    found = loading.load("my models/net.py:workload width=20")
    assert found.model[0].out_features == 20
