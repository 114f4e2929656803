"""From a folder and a text to a pruned folder, as its user sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from hwprune.errors import RunError, UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe
from hwprune.streaming import folder_writing, road
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload import loading
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import llama, losses, whole


def data(words, **more):
    return TextData(words, length=16, most=8, judged=4, **more)


@pytest.mark.parametrize(
    ("patterns", "sizes"),
    [
        ([("neuron", 0.25)], {"intermediate_size": 36}),
        ([("head", 0.5)], {"num_key_value_heads": 1, "num_attention_heads": 1}),
        ([("kv", 0.5)], {"num_key_value_heads": 1, "num_attention_heads": 2}),
        ([("query", 0.5)], {"num_key_value_heads": 2, "num_attention_heads": 2}),
        ([("neuron", 0.25), ("head", 0.5)], {"intermediate_size": 36, "num_key_value_heads": 1}),
        ([("layer", 0.34)], {"num_hidden_layers": 2}),
        ([("layer", 0.34), ("neuron", 0.5)], {"num_hidden_layers": 2, "intermediate_size": 24}),
        ([("hidden", 0.25)], {"hidden_size": 24, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 48}),
        (
            [("hidden", 0.25), ("neuron", 0.5), ("layer", 0.34)],
            {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 2},
        ),
        ([("hidden", 0.25), ("head", 0.5)], {"hidden_size": 24, "num_key_value_heads": 1, "num_attention_heads": 1}),
    ],
    ids=str,
)
def test_the_folder_has_the_new_sizes_and_the_told_perplexity(tmp_path, folder, words, patterns, sizes):
    facts = road.prune_folder(folder, data(words), SweepPlan(patterns, "obs", "obs"), tmp_path / "out", score=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in sizes} == sizes
    model = whole(tmp_path / "out")
    assert facts["params"] == sum(p.numel() for p in model.parameters()) < facts["dense_params"]
    _, judged = data(words).read(folder)
    assert facts["perplexity"] == pytest.approx(float(losses(model, judged).mean().exp()), rel=1e-5)
    assert facts["dense_perplexity"] == pytest.approx(float(losses(whole(folder), judged).mean().exp()), rel=1e-5)
    assert facts["generates"] and model.generate(judged[:1, :4], max_new_tokens=3).shape[1] == 7
    assert not (tmp_path / "out" / road.WORK).exists()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_masks_leave_the_sizes_and_set_zeros(tmp_path, folder, words, pattern):
    plan = SweepPlan([(pattern, 0.5)], "sparsegpt", "obs", ("*.self_attn.*",))
    road.prune_folder(folder, data(words), plan, tmp_path / "out")
    dense, model = whole(folder), whole(tmp_path / "out")
    for layer, before in zip(model.model.layers, dense.model.layers, strict=True):
        assert torch.equal(layer.self_attn.q_proj.weight, before.self_attn.q_proj.weight)
        zeros = layer.mlp.down_proj.weight == 0
        assert float(zeros.float().mean()) == pytest.approx(0.5, abs=0.01)
        if pattern == "2:4":
            assert bool((zeros.view(-1, 4).sum(1) == 2).all())


@pytest.mark.parametrize(("criterion", "alike"), [("l2", ""), ("wanda", ("q_proj.weight", "k_proj.weight", "v_proj.weight"))])
def test_the_first_block_equals_the_road_in_memory(tmp_path, folder, words, criterion, alike):
    """What enters it is dense on both roads; behind its first layers, inputs are pruned here, and dense there."""
    found = data(words)
    road.prune_folder(folder, found, SweepPlan([("unstructured", 0.5)], criterion, "none"), tmp_path / "out")
    workload = loading.load(f"hf:{folder} text={words} length=16 windows=8")
    pruner = Pruner(workload)
    candidate = pruner.prune(uniform_recipe(pruner, "unstructured", 0.5, criterion, "none"))
    theirs = dict(candidate.module.named_parameters())
    ours = dict(whole(tmp_path / "out").named_parameters())
    first = [name for name in ours if name.startswith("model.layers.0.") and ours[name].ndim == 2]
    compared = [name for name in first if name.endswith(alike)]
    assert len(first) == 7 and len(compared) == (3 if alike else 7)
    for name in compared:
        assert torch.equal(ours[name], theirs[name]), name
    if alike:
        assert not all(torch.equal(ours[name], theirs[name]) for name in first)


def test_a_checkpoint_in_bfloat16_stays_one(tmp_path, words):
    path = llama(tmp_path / "m", dtype=torch.bfloat16)
    road.prune_folder(path, data(words), SweepPlan([("neuron", 0.25)], "l2", "none"), tmp_path / "out")
    assert LanguageFolder(tmp_path / "out").dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == 36


def test_sizes_of_rotary_heads_are_not_written(tmp_path, folder, words):
    """Half of each head leaves frequencies that the class would choose otherwise: it is refused after the first block."""
    told = []
    with pytest.raises(UsageError, match="derives something from its sizes that this cut changes"):
        road.prune_folder(
            folder,
            data(words),
            SweepPlan([("head_dim", 0.5)], "l2", "none"),
            tmp_path / "out",
            step=lambda *words: told.append(words),
        )
    assert told == [("pruning blocks", 0, 3)]
    assert not any((tmp_path / "out").glob("*"))


def test_a_wrong_result_is_not_called_done(tmp_path, folder, words, monkeypatch):
    real = folder_writing._write_weights

    def spoiled(*given):
        real(*given)
        out = given[2]
        (path,) = out.glob("model-*.safetensors")
        from safetensors.torch import load_file, save_file

        save_file({k: x * (1.5 if ".layers.1." in k else 1) for k, x in load_file(path).items()}, path, metadata={"format": "pt"})

    monkeypatch.setattr(folder_writing, "_write_weights", spoiled)
    with pytest.raises(RunError, match="computes something else"):
        road.prune_folder(folder, data(words), SweepPlan([("neuron", 0.25)], "l2", "none"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [road.WORK]  # nothing that would pass for a model


def test_memory_that_can_not_suffice_is_refused_before_anything(tmp_path, folder, words):
    with pytest.raises(UsageError, match="one block of LlamaForCausalLM needs about"):
        road.prune_folder(folder, data(words), SweepPlan([("neuron", 0.25)], "l2", "none"), tmp_path / "out", memory=10_000)


def test_a_killed_run_goes_on_at_its_block(tmp_path, folder, words):
    line = [
        sys.executable, "-W", "ignore", "-m", "hwprune.cli.main", "apply", "neuron=0.25", f"hf:{folder}", "--text", str(words),
        "--length", "16", "--windows", "8", "--format", "huggingface", "--criterion", "l2", "--compensation", "none",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    state = tmp_path / "out" / road.WORK / "sweep" / "state.json"
    with subprocess.Popen([*line, "--out", str(tmp_path / "out")], env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (state.is_file() and len(json.loads(state.read_text())["done"]["errors"]) >= 1):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert state.is_file(), "it ended before it could be killed"
    first = state.parent / "block-0000.safetensors"
    stamp = first.stat().st_mtime_ns
    subprocess.run([*line, "--out", str(tmp_path / "other")], env=environment, check=True, capture_output=True)
    done = subprocess.Popen(
        [*line, "--out", str(tmp_path / "out")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    stamps = set()
    while done.poll() is None:
        if first.is_file():
            stamps.add(first.stat().st_mtime_ns)
        time.sleep(0.01)
    out, _ = done.communicate()
    assert done.returncode == 0 and b"Pruned block by block" in out
    assert stamps == {stamp}, "the finished block was pruned again"
    ours, theirs = (dict(whole(tmp_path / name).named_parameters()) for name in ("out", "other"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_another_sweep_left_is_not_gone_on_with(tmp_path, folder, words):
    work = tmp_path / "out" / road.WORK / "sweep"
    from hwprune.streaming.sweep import Sweep

    ids, _ = data(words).read(folder)
    Sweep(LanguageFolder(folder), ids, SweepPlan([("neuron", 0.25)], "l2", "none"), work).run()
    with pytest.raises(UsageError, match="left by another sweep"):
        road.prune_folder(folder, data(words), SweepPlan([("neuron", 0.5)], "l2", "none"), tmp_path / "out")
    assert (work / "block-0002.safetensors").is_file()  # hours of somebody's work
