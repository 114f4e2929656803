"""What channels of the stream cost, against plain least squares and models in which it is known."""

from __future__ import annotations

import torch

from hwprune.second_order.hessian import DAMPING
from hwprune.streaming import channel_costs, road
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep import Sweep
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import llama, whole


def data(words):
    return TextData(words, length=16, most=8, judged=4)


def test_what_a_layer_loses_with_an_input_is_its_share_of_the_outputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        6, 6, generator=generator, dtype=torch.float64
    )
    w = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    moments, whole_energy = x.T @ x / len(x), float((x @ w.T).square().sum())
    lost = [float((x[:, [j]] @ w[:, [j]].T).square().sum()) / whole_energy for j in range(6)]
    torch.testing.assert_close(channel_costs._shares(w, moments, refitted=False), torch.tensor(lost, dtype=torch.float64))
    ridge = DAMPING * float(moments.diagonal().mean()) * len(x)
    rows = torch.cat([x, ridge**0.5 * torch.eye(6, dtype=torch.float64)])  # the ridge as rows of data
    left = []
    for j in range(6):
        others = [i for i in range(6) if i != j]
        fit = torch.linalg.lstsq(rows[:, others], rows[:, [j]] @ w[:, [j]].T).solution
        left.append(float((rows[:, [j]] @ w[:, [j]].T - rows[:, others] @ fit).square().sum()) / whole_energy)
    torch.testing.assert_close(channel_costs._shares(w, moments, refitted=True), torch.tensor(left, dtype=torch.float64))


def test_what_experts_read_counts(tmp_path, words):
    """Columns of experts that are twenty times as strong as the others' must not go."""
    path = llama(tmp_path / "m", kind="Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
    model = whole(path)
    strong = [2, 5, 9, 11, 17, 23, 26, 30]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj[..., strong] *= 20
    model.save_pretrained(str(path))
    road.prune_folder(path, data(words), SweepPlan([("hidden", 0.25)], "l2", "none"), tmp_path / "out")
    left = whole(tmp_path / "out").model.embed_tokens.weight
    before = model.model.embed_tokens.weight
    assert all(any(torch.equal(before[:, channel], column) for column in left.T) for channel in strong)


def test_readers_in_blocks_that_go_do_not_count(tmp_path, words):
    """What only the dropped block reads has no reader left."""
    path = llama(tmp_path / "m", tied=False)
    model = whole(path)
    alone = [1, 4, 8, 12, 15, 22, 27, 29]
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            attention = [getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj")]
            for module in (*attention, layer.mlp.gate_proj, layer.mlp.up_proj):
                module.weight[:, alone] *= 20 if index == 1 else 0
        model.lm_head.weight[:, alone] = 0
        model.model.layers[1].self_attn.o_proj.weight *= 1e-3
        model.model.layers[1].mlp.down_proj.weight *= 1e-3
    model.save_pretrained(str(path))
    ids, _ = data(words).read(path)
    plan = SweepPlan([("hidden", 0.25), ("layer", 0.34)], "l2", "none")
    done = Sweep(LanguageFolder(path), ids, plan, tmp_path / "work").run()
    assert done.kept == [0, 2]
    assert not set(alone) & set(done.width)
