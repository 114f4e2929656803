"""Recipe -> candidate -> files."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import hwprune
from hwprune.errors import CandidateFailure, UsageError
from hwprune.layers.units import units
from hwprune.onnx_files import recipe_files, to_onnx
from hwprune.onnx_files.template import Template
from hwprune.pruning.pruner import Pruner
from hwprune.structure.torch.analyse import trace
from tests.conftest import randomise, tiny_workload
from tests.structure.torch.test_graph import MODELS, free_axes, relative


def onnx_run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def optimised_operators(path):
    """Operators and their number after ONNX Runtime's own optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_cut_then_mask_what_is_left(tiny):
    recipe = hwprune.Recipe(
        (
            hwprune.UnitChoice("conv1.weight:0", "channel", 0.75, "l2"),
            hwprune.UnitChoice("conv2.weight", "2:4", 0.5, "l1"),
            hwprune.UnitChoice("fc.weight", "unstructured", 0.25, "l1"),
        )
    )
    candidate = hwprune.prune(tiny, recipe)
    weights = dict(candidate.module.named_parameters())
    assert weights["conv1.weight"].shape == (16, 8, 3, 3)
    assert weights["conv2.weight"].shape == (8, 16, 3, 3)
    groups = (weights["conv2.weight"] == 0).reshape(8, 4, 4, 3, 3).sum(2)
    assert torch.equal(groups, torch.full_like(groups, 2))
    assert int((weights["fc.weight"] == 0).sum()) == 8
    # The kept channels are those of the largest norm, in their old order.
    norms = tiny.model.conv1.weight.detach().flatten(1).norm(dim=1)
    best = norms.argsort(descending=True)[:16].sort().values
    assert candidate.keeps["conv1.weight:0"].nonzero().squeeze(1).tolist() == best.tolist()
    assert torch.equal(weights["conv1.weight"], tiny.model.conv1.weight[best])


def test_n_of_m_that_does_not_fit_after_the_cut_is_a_failed_candidate(tiny):
    recipe = hwprune.Recipe(
        (hwprune.UnitChoice("conv1.weight:0", "channel", 1 - 63 / 64, "l2"), hwprune.UnitChoice("conv2.weight", "2:4", 0.5, "l1"))
    )
    with pytest.raises(CandidateFailure, match="63 inputs"):
        hwprune.prune(tiny, recipe)


def test_recipes_for_other_models_tell_every_fault(tiny):
    recipe = hwprune.Recipe(
        (
            hwprune.UnitChoice("conv9.weight:0", "channel", 0.5, "l2"),
            hwprune.UnitChoice("conv1.weight:0", "head", 0.5, "l2"),
            hwprune.UnitChoice("conv2.weight", "channel", 0.5, "l2"),
            hwprune.UnitChoice("fc.weight", "2:4", 0.5, "l9"),
        )
    )
    with pytest.raises(UsageError) as caught:
        hwprune.prune(tiny, recipe)
    assert len(caught.value.faults) == 4


def test_solve_gives_an_option_a_level(tiny):
    table = units(trace(tiny.model, tiny.example_inputs))
    options = hwprune.solve(table["conv1.weight:0"], method="l1", levels=[0.25, 0.5])
    assert [int(o.keep.sum()) for o in options] == [48, 32]
    assert 0 < options[0].error < options[1].error < 1
    (two_four,) = hwprune.solve(table["conv2.weight"], levels=[None], pattern="2:4")
    kept = tiny.model.conv2.weight.detach()[two_four.keep].double().square().sum()
    assert two_four.error == pytest.approx(1 - float(kept / tiny.model.conv2.weight.detach().double().square().sum()), rel=1e-6)


def test_every_criterion_is_a_method(tiny):
    pruner = Pruner(tiny)
    known = pruner.statistics(["gram", "fisher"]).layers
    for name in hwprune.criteria.CRITERIA:
        (option,) = hwprune.solve(pruner.units["conv1.weight:0"], known, name, [0.5])
        assert option.method == name
        assert int(option.keep.sum()) == 32


@pytest.mark.parametrize("name", ["tiny", "option-a", "inverted", "fused", "gqa"])
def test_template_gives_what_an_export_gives(name, tmp_path):
    """The file cut from the dense one computes what the module does, with an export's operators after optimisation."""
    make, _ = MODELS[name]
    model = randomise(make())
    channels = 1 if name == "tiny" else 3
    x = torch.randn(5, channels, 8, 8)
    graph = trace(model, (x[:1],))
    template = Template(graph, (x[:1],))
    keeps = {a.name: torch.arange(a.size) >= a.size // 3 for a in free_axes(graph, exact=False)}
    small = graph.cut(keeps)
    assert template.write(small, keeps, tmp_path / "model.onnx")
    to_onnx.to_onnx(small, (x[:1],), tmp_path / "exported.onnx")
    assert optimised_operators(tmp_path / "model.onnx") == optimised_operators(tmp_path / "exported.onnx")
    for batch in (1, 5):
        with torch.no_grad():
            assert relative(onnx_run(tmp_path / "model.onnx", x[:batch]), small(x[:batch])) < 1e-5


def test_exported_files_hold_no_paths_of_this_machine(tmp_path):
    hwprune.prune(tiny_workload(), hwprune.Recipe()).export(tmp_path)
    assert b".py" not in (tmp_path / "model.onnx").read_bytes()


def test_candidate_files_repeat_the_pruning(tiny, tmp_path):
    recipe = hwprune.uniform_recipe(tiny, "unstructured", 0.5, "random")
    candidate = hwprune.prune(tiny, recipe)
    candidate.export(tmp_path)
    back = recipe_files.read_recipe(tmp_path / "recipe.json")
    assert (back.recipe, back.fingerprint) == (recipe, tiny.fingerprint)
    again = Pruner(tiny).prune(back.recipe, back.keeps, back.masks)
    for name, parameter in candidate.module.named_parameters():
        assert torch.equal(parameter, dict(again.module.named_parameters())[name])
    assert set(back.masks) == {c.unit for c in recipe.choices}


def test_changed_masks_are_refused(tiny, tmp_path):
    hwprune.prune(tiny, hwprune.uniform_recipe(tiny, "unstructured", 0.5)).export(tmp_path)
    data = bytearray((tmp_path / "keep.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "keep.safetensors").write_bytes(bytes(data))
    with pytest.raises(UsageError, match="SHA-256"):
        recipe_files.read_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize("kept", [[0, 99], ["0"], [-1], "all"])
def test_recipes_with_senseless_indices_are_refused(tiny, tmp_path, kept):
    hwprune.prune(tiny, hwprune.uniform_recipe(tiny, "channel", 0.5)).export(tmp_path)
    data = json.loads((tmp_path / "recipe.json").read_text())
    data["kept"]["conv1.weight:0"] = kept
    (tmp_path / "recipe.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="kept"):
        recipe_files.read_recipe(tmp_path / "recipe.json")


def test_pt2_runs_and_holds_no_sample_inputs(tiny, tmp_path):
    candidate = hwprune.prune(tiny, hwprune.uniform_recipe(tiny, "channel", 0.5))
    to_onnx.to_pt2(candidate.module, tiny.example_inputs, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert relative(program.module()(x), candidate.module(x)) < 1e-6
    assert program.example_inputs is None


def test_check_cut_reports_a_small_difference(tiny):
    pruner = Pruner(tiny)
    assert pruner.check_cut(pruner.prune(hwprune.uniform_recipe(tiny, "channel", 0.5))) <= 1e-5


def test_check_cut_stops_a_wrong_cut(tiny, monkeypatch):
    pruner = Pruner(tiny)
    candidate = pruner.prune(hwprune.uniform_recipe(tiny, "channel", 0.5))
    right = pruner.graph.mask

    def wrong(keeps):
        module = right(keeps)
        with torch.no_grad():
            module.fc.weight.add_(0.1)
        return module

    monkeypatch.setattr(type(pruner.graph), "mask", lambda self, keeps, drop=(): wrong(keeps))
    with pytest.raises(hwprune.HwpruneError, match="bug in a rule"):
        pruner.check_cut(candidate)


def test_samples_hold_what_the_loader_gave(tiny, tmp_path):
    from hwprune.latency.samples import read_batches
    from hwprune.workload import sample_files

    targets = sample_files.write_samples(tiny, "validation", tmp_path / "v.npz")
    stored = [inputs[0] for _, inputs in read_batches(str(tmp_path / "v.npz"))]
    for (inputs, target), array, kept in zip(tiny.validation, stored, targets, strict=True):
        np.testing.assert_array_equal(array, inputs.numpy())
        assert torch.equal(kept, target)


def test_a_cut_that_does_not_run_is_no_candidate(tiny, monkeypatch):
    """Whatever rule is wrong: nobody is given a model that crashes."""
    pruner = Pruner(tiny)
    right = pruner.graph.cut

    def wrong(keeps, drop=()):
        module = right(keeps, drop)
        module.conv2.weight = torch.nn.Parameter(module.conv2.weight[:, 1:])
        return module

    recipe = hwprune.Recipe((hwprune.UnitChoice("conv1.weight:0", "channel", 0.75, "l2"),))
    monkeypatch.setattr(type(pruner.graph), "cut", lambda _graph, keeps, drop=(): wrong(keeps, drop))
    with pytest.raises(CandidateFailure, match=r"does not run with a cut of conv1\.weight:0: RuntimeError"):
        pruner.prune(recipe)
    monkeypatch.undo()
    assert pruner.prune(recipe).module.conv1.weight.shape == (16, 8, 3, 3)
