"""The option database: computed once, read from disk, never stale."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import hwprune
from hwprune.calibration import collect as calibrate
from hwprune.calibration import sensitivity
from hwprune.methods import method
from hwprune.pruning import database
from hwprune.pruning.database import Database, calibration_fingerprint
from hwprune.pruning.pruner import Pruner
from tests.conftest import tiny_workload


@pytest.fixture
def counted(monkeypatch):
    """How often units were solved and data were read for statistics."""
    calls = {"solve": [], "statistics": 0}
    solve, collect = method.solve, calibrate.collect_statistics

    def counting_solve(unit, statistics, chosen, levels, *rest):
        calls["solve"].append((unit.name, chosen.name, tuple(levels)))
        return solve(unit, statistics, chosen, levels, *rest)

    def counting_collect(*arguments, **options):
        calls["statistics"] += 1
        return collect(*arguments, **options)

    monkeypatch.setattr(method, "solve", counting_solve)
    monkeypatch.setattr(calibrate, "collect_statistics", counting_collect)
    return calls


RECIPE = hwprune.Recipe(
    (hwprune.UnitChoice("conv1.weight:0", "channel", 0.5, "obs"), hwprune.UnitChoice("fc.weight", "2:4", 0.5, "sparsegpt")), "obs"
)


def test_options_are_computed_once_for_all_runs(tmp_path, counted):
    first = Pruner(tiny_workload(), tmp_path).prune(RECIPE)
    assert len(counted["solve"]) == 2
    assert counted["statistics"] == 1
    second = Pruner(tiny_workload(), tmp_path).prune(RECIPE)
    assert len(counted["solve"]) == 2
    assert counted["statistics"] == 1
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    in_memory = Pruner(tiny_workload()).prune(RECIPE)
    for name, tensor in in_memory.module.state_dict().items():
        assert torch.allclose(tensor, first.module.state_dict()[name], atol=1e-6), name


def test_all_levels_come_from_one_trace(tmp_path, counted):
    pruner = Pruner(tiny_workload(), tmp_path)
    options = pruner.options("conv1.weight:0", "channel", "obs", [0.25, 0.5, 0.75], "obs")
    assert counted["solve"] == [("conv1.weight:0", "obs", (0.25, 0.5, 0.75))]
    assert [int(option.keep.sum()) for option in options] == [48, 32, 16]
    assert [option.error for option in options] == sorted(option.error for option in options)
    more = Pruner(tiny_workload(), tmp_path).options("conv1.weight:0", "channel", "obs", [0.5, 0.9], "obs")
    assert counted["solve"][1:] == [("conv1.weight:0", "obs", (0.9,))]
    assert torch.equal(more[0].keep, options[1].keep)
    assert torch.equal(more[0].weights["conv2.weight"], options[1].weights["conv2.weight"])


def test_other_weights_data_or_code_are_another_database(tmp_path, counted, monkeypatch):
    Pruner(tiny_workload(), tmp_path).prune(RECIPE)
    other = tiny_workload()
    with torch.no_grad():
        other.model.fc.bias += 1
    Pruner(other, tmp_path).prune(RECIPE)
    assert len(counted["solve"]) == 4
    data = dataclasses.replace(tiny_workload(), calibration=tiny_workload().validation)
    Pruner(data, tmp_path).prune(RECIPE)
    assert len(counted["solve"]) == 6
    monkeypatch.setattr(database, "code_fingerprint", lambda: "ffffffff")
    Pruner(tiny_workload(), tmp_path).prune(RECIPE)
    assert len(counted["solve"]) == 8
    assert len(list(tmp_path.iterdir())) == 4


def test_damaged_files_are_computed_again(tmp_path, counted):
    expected = Pruner(tiny_workload(), tmp_path).prune(RECIPE)
    for number, path in enumerate(sorted(tmp_path.rglob("*.safetensors"))):
        path.write_bytes(path.read_bytes()[: 10 + number])
    again = Pruner(tiny_workload(), tmp_path).prune(RECIPE)
    assert len(counted["solve"]) == 4
    for name, tensor in expected.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name])
    assert not list(tmp_path.rglob("*.part"))


def test_statistics_come_back_as_they_were(tmp_path):
    one = Pruner(tiny_workload("top1"), tmp_path).statistics(["gram", "fisher", "influence"])
    two = Pruner(tiny_workload("top1"), tmp_path).statistics(["gram", "fisher", "influence"])
    assert one.influence == two.influence
    for name, statistics in one.layers.items():
        for item in dataclasses.fields(statistics):
            first, second = getattr(statistics, item.name), getattr(two.layers[name], item.name)
            assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second, item.name


def test_tensors_are_mapped_and_not_read():
    """What is read from an option's file lies in the file, not in memory of its own."""
    import os
    import tempfile
    from pathlib import Path

    from safetensors import safe_open
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.safetensors"
        save_file({f"w{i}": torch.zeros(25_000_000) for i in range(4)}, path)
        before = _resident()
        with safe_open(path, "pt") as stored:
            tensors = [stored.get_tensor(f"w{i}") for i in range(4)]
        held = _resident() - before
        assert sum(t.numel() for t in tensors) == 100_000_000
        assert os.path.getsize(path) > 400_000_000
    assert held < 200_000_000


def _resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096


def test_the_loss_and_the_metric_are_part_of_the_key():
    """Fisher statistics are the loss's, and drawn or given labels go by the metric (`collect_statistics`, labels ``auto``)."""
    workload = tiny_workload("top1")
    variants = [
        workload,
        dataclasses.replace(workload, loss=torch.nn.CrossEntropyLoss()),
        dataclasses.replace(workload, loss=torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
        dataclasses.replace(workload, metric="top5"),
        dataclasses.replace(workload, metric=lambda outputs, targets: outputs[:, 0]),
        dataclasses.replace(workload, metric=lambda outputs, targets: outputs[:, 1]),
    ]
    keys = [database.calibration_fingerprint(variant) for variant in variants]
    assert len(set(keys)) == len(keys)
    assert database.calibration_fingerprint(tiny_workload("top1")) == keys[0]


def test_the_database_is_keyed_by_loss_targets_and_what_the_model_computes(tmp_path):
    def folder(workload):
        pruner = Pruner(workload)
        return Database(tmp_path, workload, pruner.fingerprint, pruner.graph.module).folder

    workload = tiny_workload("top1")
    same = folder(workload)
    assert folder(tiny_workload("top1")) == same
    assert folder(dataclasses.replace(workload, loss=F.nll_loss)) != same
    relabelled = [(x, (y + 1) % 4) for x, y in workload.calibration]
    assert folder(dataclasses.replace(workload, calibration=relabelled)) != same
    nested = [[(x, {"y": y + i}) for x, y in workload.calibration] for i in (0, 1)]
    prints = {
        calibration_fingerprint(dataclasses.replace(workload, calibration=data, metric=lambda o, t: o[:, 0])) for data in nested
    }
    assert len(prints) == 2

    class Other(type(workload.model)):
        def forward(self, x):
            return super().forward(torch.cos(x))

    other = Other()
    other.load_state_dict(workload.model.state_dict())
    assert folder(dataclasses.replace(workload, model=other.eval())) != same


def test_shuffled_data_are_the_same_data():
    workload = tiny_workload("top1")
    data = torch.utils.data.TensorDataset(
        torch.cat([x for x, _ in workload.validation]), torch.cat([y for _, y in workload.validation])
    )
    loader = torch.utils.data.DataLoader(data, batch_size=7, shuffle=True)
    shuffled = dataclasses.replace(workload, calibration=loader)
    assert calibration_fingerprint(shuffled) == calibration_fingerprint(shuffled)


def test_everything_that_the_key_is_made_of_is_there():
    """A folder that moved would silently leave the key."""
    from hwprune.pruning import database

    root = Path(database.__file__).parents[1]
    assert [name for name in database.CODE if not list(root.joinpath(name).rglob("*.py")) and not (root / name).is_file()] == []
    for name in ("calibration", "criteria", "methods", "patterns", "second_order", "structure", "layers"):
        assert name in database.CODE
    assert {"workload/metrics.py", "workload/workload.py"} <= set(database.CODE) or "workload" in database.CODE


def _responses(workload, folder, levels=(0.25, 0.5), branches=(), compensation="obs"):
    key = ("conv1.weight:0", "channel", "obs")
    return Pruner(workload, folder).responses({key: levels}, branches, compensation)[key]


def test_what_options_do_to_the_outputs_is_found_out_once(tmp_path, monkeypatch):
    """The pass over the data is not gone through again for the same question, and is for every other one."""
    passes = []
    compute = sensitivity.responses
    monkeypatch.setattr(sensitivity, "responses", lambda *a, **k: passes.append(1) or compute(*a, **k))

    def asked(*arguments, **options):
        passes.clear()
        return _responses(*arguments, **options), len(passes)

    first, count = asked(tiny_workload(), tmp_path)
    assert count == 1 and first.shape == (20, 2)
    again, count = asked(tiny_workload(), tmp_path)
    assert count == 0 and torch.equal(first, again)
    changed = tiny_workload()
    with torch.no_grad():
        changed.model.fc.weight.mul_(1.5)
    good = tiny_workload()
    other_data = dataclasses.replace(good, calibration=[(inputs + 0.1, targets) for inputs, targets in good.calibration])
    other_metric = dataclasses.replace(good, metric="top1")
    for workload in (changed, other_data, other_metric):
        assert asked(workload, tmp_path)[1] == 1
    for options in ({"levels": (0.25, 0.75)}, {"compensation": "none"}):
        assert asked(good, tmp_path, **options)[1] == 1
    monkeypatch.setattr(sensitivity, "EXAMPLES", 10)
    assert asked(good, tmp_path)[1] == 1
    assert asked(good, None)[1] == asked(good, None)[1] == 1  # without a database nothing is kept


def test_damaged_responses_are_computed_again(tmp_path):
    first = _responses(tiny_workload(), tmp_path)
    (path,) = tmp_path.rglob("responses-*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(_responses(tiny_workload(), tmp_path), first)


def test_responses_of_fewer_examples_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity, "LEAST_EXAMPLES", 1)
    key = ("conv1.weight:0", "channel", "l2")
    hurried = Pruner(tiny_workload(), tmp_path, late=lambda: True)
    hurried.responses({key: (0.5,)}, (), "none")
    assert not list(tmp_path.rglob("responses-*"))
    Pruner(tiny_workload(), tmp_path).responses({key: (0.5,)}, (), "none")
    assert len(list(tmp_path.rglob("responses-*"))) == 1
