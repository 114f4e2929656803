"""model.onnx as a workload, and models that can't be traced: from the command line to the front."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import hwprune
from hwprune.cli.main import main
from hwprune.errors import TraceError, UsageError, WorkloadError
from hwprune.onnx_files import tidy
from hwprune.pruning.pruner import Pruner
from hwprune.workload import loading
from hwprune.workload.npz_file import read_npz
from tests.conftest import TinyNet, randomise
from tests.structure.onnx.test_graph import N, net, run


@pytest.fixture
def files(tmp_path, monkeypatch, made):
    """tiny.onnx with its data, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    model, x = randomise(TinyNet()), torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with tidy.quiet():
        torch.onnx.export(
            model, (x[:2],), folder / "tiny.onnx", dynamo=True, dynamic_shapes=({0: torch.export.Dim.AUTO},), verbose=False
        )
    with torch.no_grad():
        labels = model(x).argmax(1)
    name = onnx.load(folder / "tiny.onnx").graph.input[0].name
    np.savez(folder / "data.npz", **{name: x.numpy()})
    np.savez(folder / "labelled.npz", images=x.numpy(), targets=labels.numpy())
    np.savez(folder / "splits.npz", **{f"{split}.{name}": x.numpy() for split in ("calibration", "validation", "test")})
    (folder / "adapter.py").write_text(
        "import numpy as np, torch\n"
        "def data():\n"
        "    x = torch.from_numpy(np.load('labelled.npz')['images'])\n"
        "    return {'validation': [(x, None)], 'calibration': [(x[:8], None)], 'metric': 'agreement'}\n"
        "def wrong():\n    return 3\n"
        "def typo():\n    return {'validaton': []}\n"
    )
    return folder


def test_npz_and_functions_give_data(files):
    plain = loading.load("tiny.onnx data=data.npz")
    assert plain.metric == "agreement" and plain.name == "tiny"
    assert sum(len(x[0]) for x, _ in plain.batches("validation")) == 45
    assert sum(len(x[0]) for x, _ in plain.batches("calibration")) == 15
    assert loading.load("tiny.onnx metric=top1 data=labelled.npz").metric == "top1"
    assert loading.load("tiny.onnx batch=4 data=data.npz").example_inputs[0].shape == (4, 1, 8, 8)
    assert loading.load("tiny.onnx data=splits.npz").test is not None
    assert len(list(loading.load("tiny.onnx data=adapter.py:data").batches("calibration"))) == 1


def numbered(path):
    """An .npz of 400 examples sorted by class, whose input and targets tell which example they are; and how it is divided."""
    number = np.arange(400)
    np.savez(path, x=np.stack([number, -number], axis=1).astype(np.float32), y=number // 40)
    return {
        split: (torch.cat([inputs[0] for inputs, _ in batches]), torch.cat([target for _, target in batches]))
        for split, batches in read_npz(path, ["x"]).items()
    }


def test_a_file_without_splits_is_divided_at_random(tmp_path):
    parts = numbered(tmp_path / "sorted.npz")
    for inputs, targets in parts.values():
        assert torch.equal(inputs[:, 0] // 40, targets.float()) and torch.equal(inputs[:, 1], -inputs[:, 0])  # still pairs
        assert len(set(targets[:64].tolist())) == 10  # every class, in the first batch already
    assert len(parts["calibration"][0]) == 100
    assert sorted(torch.cat([inputs[:, 0] for inputs, _ in parts.values()]).tolist()) == list(range(400))
    again = numbered(tmp_path / "again.npz")
    assert all(torch.equal(parts[split][0], again[split][0]) for split in parts)


def test_arrays_that_are_no_input_may_have_any_length(tmp_path):
    np.savez(tmp_path / "more.npz", x=np.zeros((8, 3), np.float32), z=np.zeros((8, 1), np.float32), mean=np.zeros(3))
    assert len(read_npz(tmp_path / "more.npz", ["x", "z"])["calibration"][0][0][0]) == 2


def test_stored_splits_keep_their_order(tmp_path):
    rows = np.arange(130, dtype=np.float32)[:, None]
    np.savez(tmp_path / "splits.npz", **{"calibration.x": rows, "validation.x": rows})
    for batches in read_npz(tmp_path / "splits.npz", ["x"]).values():
        assert torch.cat([inputs[0] for inputs, _ in batches])[:, 0].tolist() == list(range(130))


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("tiny.onnx", UsageError, "comes without data"),
        ("none.onnx", UsageError, "there is no file"),
        ("tiny.onnx data=labelled.txt", UsageError, "--data takes"),
        ("tiny.onnx data=none.npz", UsageError, "there is no file"),
        ("tiny.onnx speed=1 data=data.npz", UsageError, "known: batch, metric"),
        ("tiny.onnx metric=topp data=data.npz", UsageError, "topp"),
        ("tiny.onnx data=adapter.py:wrong", WorkloadError, "must return a dict"),
        ("tiny.onnx data=adapter.py:typo", UsageError, "must give validation"),
        ("broken.onnx data=data.npz", WorkloadError, "can't be read as an ONNX model"),
    ],
)
def test_faults_are_told(files, source, error, text):
    (files / "broken.onnx").write_bytes(b"no protobuf at all, really not")
    with pytest.raises(error, match=text):
        loading.load(source)


def test_search_inspect_and_apply(files, capsys):
    assert main(["inspect", "tiny.onnx", "--json"]) == 0
    axes = json.loads(capsys.readouterr().out)["axes"]
    assert {"channel", "hidden"} <= {axis["role"] for axis in axes if not axis["frozen"]}
    code = main(
        ["search", "tiny.onnx", "--data", "data.npz", "--trials", "3", "--space", "structured", "--out", "run", "--quiet"]
    )
    record = json.loads((files / "run" / "record.json").read_text())
    assert code == (0 if record["front"] else 1)
    assert [trial["state"] for trial in record["trials"]] == ["measured"] * 3
    recipe = next(files.glob("run/candidates/*/recipe.json"), None)
    if recipe is not None:
        assert main(["apply", str(recipe), "tiny.onnx", "--data", "data.npz", "--out", "applied"]) == 0
        assert (files / "applied" / "model.onnx").is_file()


def test_the_users_own_file_is_cut(files):
    """Names of inputs and outputs and the operators stay those of the file."""
    workload = loading.load("tiny.onnx data=data.npz")
    pruner = Pruner(workload)
    recipe = hwprune.uniform_recipe(workload, "channel", 0.5)
    candidate = pruner.prune(recipe)
    candidate.export(files / "out")
    mine, theirs = onnx.load(files / "out" / "model.onnx"), onnx.load("tiny.onnx")
    assert [i.name for i in mine.graph.input] == [i.name for i in theirs.graph.input]
    assert [o.name for o in mine.graph.output] == [o.name for o in theirs.graph.output]
    assert [n.op_type for n in mine.graph.node] == [n.op_type for n in theirs.graph.node]
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(run(mine, x), candidate.module(x), atol=1e-4)


def test_what_the_runtime_computes_otherwise_is_refused(files, monkeypatch):
    onnx.save(net([N("MatMul", ["x", "w"], ["a"]), N("Gelu", ["a"], ["y"])], {"w": (6, 3)}, opset=20), "gelu.onnx")
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32))
    loading.load("gelu.onnx data=x.npz")
    from hwprune.onnx_files.operators.table import OPERATORS

    monkeypatch.setitem(OPERATORS, "Gelu", lambda node: torch.relu(node.tensor(0)))
    with pytest.raises(WorkloadError, match="computes something else than the runtime"):
        loading.load("gelu.onnx data=x.npz")


class Branching(nn.Module):
    """A Python branch on a tensor's values."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        y = torch.relu(self.a(x))
        if y.sum() > -1:
            y = torch.relu(self.b(y))
        return self.c(y)


def branching():
    data = [(torch.randn(32, 16, generator=torch.Generator().manual_seed(i)), None) for i in range(3)]
    return hwprune.Workload("branching", randomise(Branching()), (data[0][0][:1],), data[:1], data, metric="agreement")


def test_untraceable_models_say_why_in_plain_words():
    with pytest.raises(TraceError, match=r"Python branch.*from the values of a tensor \(line \d+ of test_onnx_file.py: if y.sum"):
        hwprune.trace(Branching(), (torch.randn(1, 16),))


@pytest.mark.filterwarnings("ignore")
def test_untraceable_models_keep_their_mask_patterns(tmp_path):
    pruner = Pruner(branching())
    assert pruner.graph.axes == () and set(pruner.units) == {"a.weight", "b.weight", "c.weight"}
    candidate = pruner.prune(hwprune.uniform_recipe(branching(), "2:4", 0.5))
    weight = dict(candidate.module.named_parameters())["b.weight"]
    assert float((weight == 0).float().mean()) == 0.5
    assert float((pruner.workload.model.b.weight == 0).float().mean()) == 0
    result = hwprune.search(branching(), space="two-four", trials=2, out=tmp_path / "run", all_patterns=True)
    assert [trial.state for trial in result.trials] == ["measured"] * 2
    assert any("Only mask patterns were searched" in note for note in result.notes)


@pytest.mark.parametrize("batch", ["abc", "-1", "2.5", "0", "true"])
def test_a_batch_that_is_none_is_told(files, batch):
    with pytest.raises(UsageError, match="batch must be a whole number of examples, at least 1"):
        loading.load(f"tiny.onnx batch={batch} data=data.npz")


def test_labels_are_used(files):
    """Whole numbers are classes, as they are for models of libraries; without labels, or with numbers, agreement counts."""
    with np.load("data.npz") as stored:
        arrays = {name: stored[name] for name in stored.files if name != "targets"}
    count = len(next(iter(arrays.values())))
    np.savez("labelled.npz", **arrays, targets=np.arange(count) % 3)
    np.savez("numbers.npz", **arrays, targets=np.linspace(0, 1, count, dtype=np.float32))
    np.savez("bare.npz", **arrays)
    found = [loading.load(f"tiny.onnx data={name}.npz").metric for name in ("labelled", "numbers", "bare")]
    assert found == ["top1", "agreement", "agreement"]


def test_a_file_that_is_not_there_and_a_folder_are_told(files):
    with pytest.raises(UsageError, match=r"there is no file nothing\.npz \(--data"):
        loading.load("tiny.onnx data=nothing.npz")
    (files / "bert").mkdir()
    with pytest.raises(UsageError, match=r"bert is a folder\. Did you mean hf:bert\?"):
        loading.load("bert")
