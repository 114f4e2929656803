"""Gates learned from text: what was made useless shuts, and what is cut is what they say."""

from __future__ import annotations

import json

import pytest
import torch

from hwprune.cli import main
from hwprune.errors import UsageError
from hwprune.streaming import learned_masks
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.learned_masks import GateScores, HardConcrete, learn, tokens_of
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import windows
from tests.streaming.helpers import llama, text, whole


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Of each block half of the neurons, of the second one a group, and the last block do nearly nothing."""
    place = tmp_path_factory.mktemp("planted")
    folder = llama(place / "m", depth=4)
    model = whole(folder)
    draw, idle = torch.Generator().manual_seed(5), []
    for layer in model.model.layers:
        idle.append(torch.randperm(48, generator=draw)[:24].sort().values)
        layer.mlp.down_proj.weight.data[:, idle[-1]] *= 0.01
        layer.mlp.gate_proj.weight.data[idle[-1]] *= 3  # large weights and activations that nothing comes of
    model.model.layers[1].self_attn.o_proj.weight.data[:, :16] *= 0.01
    for projection in (model.model.layers[3].self_attn.o_proj, model.model.layers[3].mlp.down_proj):
        projection.weight.data *= 0.02
    model.save_pretrained(str(folder))
    words = text(place / "words.txt", 3000)
    return folder, words, idle, windows(folder, words, 16)


def plan(*patterns, tokens=2000):
    return SweepPlan(patterns, f"learned:{tokens}", "obs")


def test_neurons_that_do_nothing_are_found(planted, tmp_path):
    folder, _, idle, ids = planted
    found = learn(LanguageFolder(folder), plan(("neuron", 0.5), tokens=10_000), ids, tmp_path)
    for block, scores in enumerate(found.scores["neuron"][:3]):
        assert len(set(scores.argsort()[:24].tolist()) & set(idle[block].tolist())) >= 22
    # Their weights are small on the way out alone: what the gates found is not what large weights say.
    gate = whole(folder).model.layers[0].mlp.gate_proj.weight
    assert len(set(gate.norm(dim=1).argsort()[:24].tolist()) & set(idle[0].tolist())) < 6


def test_groups_and_blocks_that_do_nothing_are_found(planted, tmp_path):
    folder, _, _, ids = planted
    found = learn(LanguageFolder(folder), plan(("kv", 0.5), ("layer", 0.25)), ids, tmp_path)
    assert {name: tuple(x.shape) for name, x in found.scores.items()} == {"kv": (4, 2), "layer": (1, 4)}
    assert found.scores["kv"][1].argmin() == 0
    assert found.of_blocks("layer").index(min(found.of_blocks("layer"))) == 3


def test_so_many_gates_stay_open_as_are_to_stay():
    torch.manual_seed(0)
    gates = HardConcrete(3, 40, 0.3)
    for gone in (0.5, 1.0):
        gates.odds.grad = torch.randn(3, 40)
        gates.learn(0.5, gone)
        drawn = torch.stack([gates.draw(torch.Generator().manual_seed(seed)) for seed in range(400)])
        open_ = (drawn > 0).float().mean(dim=(0, 2))
        torch.testing.assert_close(open_, torch.full((3,), 1 - 0.3 * gone), rtol=0, atol=0.02)


def test_what_is_missed_most_stays_open():
    gates = HardConcrete(2, 10, 0.5)
    for _ in range(20):
        # The loss falls where a gate opens, by more for later ones; the second row's losses are a thousandth of the first's.
        gates.odds.grad = -torch.arange(10.0).expand(2, -1) * torch.tensor([[1.0], [1e-3]])
        gates.learn(0.3, 1.0)
    assert (gates.odds.diff(dim=1) > 0).all()
    torch.testing.assert_close(gates.odds[0], gates.odds[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_command_cuts_what_was_learned(planted, tmp_path, capsys):
    folder, words, idle, _ = planted
    given = [
        "apply", "neuron=0.5,layer=0.25", f"hf:{folder}", "--text", str(words), "--length", "16", "--windows", "8", "--multiple", "1",
        "--format", "huggingface", "--score", "--criterion", "learned:10k", "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    assert main.main(given) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kept"] == [0, 1, 2] and facts["perplexity"] < 1.02 * facts["dense_perplexity"]
    down = whole(tmp_path / "out").model.layers[0].mlp.down_proj.weight
    dense = whole(folder).model.layers[0].mlp.down_proj.weight
    kept = (dense.T[:, None] - down.T[None]).square().sum(-1).argmin(0)  # the dense neuron that each is
    assert len({*kept.tolist()} - {*idle[0].tolist()}) >= 22
    dense = dense[:, kept]
    torch.testing.assert_close(down, dense, rtol=0, atol=0)  # no repair, where nobody asks for it


def test_gates_of_a_killed_sweep_are_gone_on_with(planted, tmp_path):
    folder, _, _, ids = planted
    found = learn(LanguageFolder(folder), plan(("neuron", 0.5), ("mlp", 0.25), tokens=64), ids, tmp_path)
    found.save(tmp_path / "gates.safetensors")
    again = GateScores.load(tmp_path / "gates.safetensors")
    assert again.of_blocks("mlp") == found.of_blocks("mlp") and again.readers.keys() == {"neuron"}
    torch.testing.assert_close(again.scores["neuron"], found.scores["neuron"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recipe", "criterion", "message"),
    [
        ("neuron=0.5", "learned", "takes the tokens that it learns from: learned:30k"),
        ("neuron=0.5", "learned:many", "takes the tokens"),
        ("hidden=0.25", "learned:1k", "takes neuron, kv, attention, mlp, layer, got hidden"),
        ("2:4", "learned:1k", "takes neuron, kv, attention, mlp, layer, got 2:4"),
    ],
)
def test_what_has_no_gates_is_told(planted, tmp_path, capsys, recipe, criterion, message):
    folder, words, _, _ = planted
    given = ["apply", recipe, f"hf:{folder}", "--text", str(words), "--length", "16", "--format", "huggingface"]
    assert main.main([*given, "--criterion", criterion, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_plans_of_single_blocks_have_no_gates():
    with pytest.raises(UsageError, match="same share of all blocks"):
        learned_masks.check(SweepPlan((), "learned:1k", "obs", by_block=({"neuron": 0.5}, {})))
    assert tokens_of("obs") is None and tokens_of("learned:2M") == 2_000_000
