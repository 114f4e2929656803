"""The sweep: what it keeps, what it drops, and that a refit is held against windows that it has not seen."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.streaming.block_pruning import BlockPruner
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep import Sweep
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import windows
from tests.streaming.helpers import llama, whole


def swept(folder, words, tmp_path, plan, count=8):
    sweep = Sweep(LanguageFolder(folder), windows(folder, words, 16)[:count], plan, tmp_path / "work")
    return sweep, sweep.run()


@torch.no_grad()
def test_the_block_that_changes_nothing_is_dropped_first(tmp_path, words):
    path = llama(tmp_path / "m", depth=4)
    model = whole(path)
    for name, parameter in model.model.layers[2].named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(1e-3)
    model.save_pretrained(str(path))
    _, done = swept(path, words, tmp_path, SweepPlan([("layer", 0.25)], "l2", "none"))
    assert done.kept == [0, 1, 3]
    assert done.errors[-1] < 1e-3  # against the dense stream, which goes through the dropped block too


def test_errors_are_those_of_the_dense_stream(tmp_path, folder, words):
    sweep, done = swept(folder, words, tmp_path, SweepPlan([("neuron", 0.5)], "l2", "none"))
    model = whole(folder)
    seen = []
    model.model.layers[-1].register_forward_hook(lambda _l, _i, output: seen.append(output))
    pruned = whole(folder)
    for place, layer in enumerate(pruned.model.layers):
        tensors = load_file(sweep.block_file(place))
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(layer.mlp, name).weight.data = tensors[f"mlp.{name}.weight"]
    pruned.model.layers[-1].register_forward_hook(lambda _l, _i, output: seen.append(output))
    error = spread = 0.0
    with torch.no_grad():
        for window in sweep.held:
            for one in (model, pruned):
                one(sweep.ids[window][None], use_cache=False)
            dense, cut = seen[-2:]
            error += float((cut - dense).square().sum())
            spread += float((dense - dense.mean()).square().sum())
    assert done.errors[-1] == pytest.approx(error / spread, rel=1e-4)
    assert done.errors[-1] > 0.001


def test_a_refit_that_hurts_unseen_windows_is_left_out(tmp_path, folder, words, monkeypatch):
    """Block 1's refit is spoiled after it was made: only held-out windows can tell."""
    real = Pruner.prune
    spoiled = []

    def prune(self, recipe, *rest):
        made = real(self, recipe, *rest)
        if self.workload.name == "model.layers.1" and recipe.compensation != "none":
            spoiled.append(made)
            with torch.no_grad():
                next(p for name, p in made.module.named_parameters() if "down_proj" in name).mul_(3.0)
        return made

    monkeypatch.setattr(Pruner, "prune", prune)
    _, done = swept(folder, words, tmp_path, SweepPlan([("neuron", 0.25)], "obs", "obs"))
    assert spoiled and "model.layers.1" in done.plain


def test_a_block_that_is_done_again_after_a_kill_is_the_same(tmp_path, folder, words, monkeypatch):
    """Killed after the dense stream went through a dropped block: it must not go through it twice."""
    plan = SweepPlan([("layer", 0.34), ("neuron", 0.5)], "l2", "none")
    monkeypatch.setattr(Sweep, "_kept", lambda *_: ([0, 2], {}))
    _, whole_run = swept(folder, words, tmp_path, plan)
    real, calls = BlockPruner.prune, []

    def killed(self, *rest, **more):
        calls.append(int(self.name.rpartition(".")[2]))
        if calls == [0, 2]:
            raise KeyboardInterrupt
        return real(self, *rest, **more)

    monkeypatch.setattr(BlockPruner, "prune", killed)
    with pytest.raises(KeyboardInterrupt):
        swept(folder, words, tmp_path / "again", plan)
    _, resumed = swept(folder, words, tmp_path / "again", plan)
    assert calls == [0, 2, 2] and resumed.errors == whole_run.errors


def test_held_out_windows_decide(tmp_path, folder, words):
    sweep = Sweep(
        LanguageFolder(folder), windows(folder, words, 16)[:8], SweepPlan([("neuron", 0.5)], "obs", "obs"), tmp_path / "w"
    )
    assert sweep.held == [3, 7] and sweep.fitted == [0, 1, 2, 4, 5, 6]


def test_nothing_but_a_fraction_of_the_blocks_can_go():
    with pytest.raises(UsageError, match="between 0 and 1"):
        SweepPlan([("layer", 1.0)], "l2", "none")


def test_excluded_units_stay(tmp_path, folder, words):
    plan = SweepPlan([("neuron", 0.5)], "l2", "none", ("model.layers.0.*", "*.2.mlp.*"))
    sweep, done = swept(folder, words, tmp_path, plan)
    sizes = [load_file(sweep.block_file(place))["mlp.up_proj.weight"].shape[0] for place in range(len(done.kept))]
    assert sizes == [48, 24, 48]


@pytest.mark.parametrize(
    ("size", "sparsity", "multiple", "kept"),
    [
        (1536, 0.2, 32, 1216), (1536, 0.2, 1, 1229), (1536, 0.25, 32, 1152), (1536, 0.001, 32, 1504), (1536, 0.999, 32, 32),
        (1536, 0.2, 256, 1280), (48, 0.25, 32, 36), (32, 0.25, 32, 24), (64, 0.4, 32, 32),
    ],
)  # fmt: skip
def test_numbers_of_neurons_are_multiples_where_the_dense_one_is(size, sparsity, multiple, kept):
    assert SweepPlan([("neuron", sparsity)], "l2", "none", multiple=multiple).kept(size, sparsity) == kept


def test_the_sweep_rounds_numbers_of_neurons(tmp_path, folder, words):
    """48 neurons in multiples of 16: a fifth fewer are 38 or, rounded, 32 - and 48 is no multiple of 32."""
    for multiple, expected in ((1, 38), (16, 32), (32, 38)):
        plan = SweepPlan([("neuron", 0.2)], "l2", "none", multiple=multiple)
        sweep, _ = swept(folder, words, tmp_path / str(multiple), plan)
        assert load_file(sweep.block_file(0))["mlp.up_proj.weight"].shape[0] == expected
