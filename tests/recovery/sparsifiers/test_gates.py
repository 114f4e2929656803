"""Hard-concrete gates."""

from __future__ import annotations

import pytest
import torch

from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.loop.run import train
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import prune_gradually
from hwprune.recovery.sparsifiers.gates import Gates
from tests.recovery.helpers import CHANNELS, HALF, coarse_gates, private


def test_gates_learn_to_close(stripes):
    """The speed is reached by training, before any gate is closed by hand, and what closes is told from what stays."""
    own = private(stripes)
    plan = Plan("gradual", 12, rate=0.002)
    decider = coarse_gates(own, HALF, plan)
    seen = []
    closed = decider._closed
    decider._closed = lambda: seen.append(float(decider.expected_ratio().detach())) or closed()
    train(own.graph.module, stripes.workload, plan, sparsifier=decider, teacher=stripes.graph.module, keep_best=False)
    assert seen[0] == pytest.approx(0.6, abs=0.06)
    opened = decider.open("inner.weight:0").detach().sort().values
    assert int((opened < 0.3).sum()) >= 8 and int((opened > 0.7).sum()) >= 3


SAVINGS = {"inner.weight:0": ([2, 4, 8, 12, 16], [0.6, 0.5, 0.35, 0.15, 0.0])}


def gates(pruner, recipe, plan):
    return Gates(pruner, recipe, plan, SAVINGS, ratio=0.6)


def test_gates_reach_the_speed_target_by_the_table(stripes):
    made = prune_gradually(stripes, CHANNELS, Plan("gradual", 6, updates=20), gates)
    (choice,) = made.candidate.recipe.choices
    left = 16 - round(16 * choice.sparsity)
    sizes, saved = SAVINGS["inner.weight:0"]
    assert left in sizes and 1 - saved[sizes.index(left)] <= 0.6  # 4 channels: the largest size that is fast enough
    assert left == 4


def test_gates_expect_what_the_table_says(stripes):
    decider = gates(private(stripes), CHANNELS, Plan("gradual"))
    with torch.no_grad():
        decider.scores["inner.weight:0"].fill_(100.0)
    assert float(decider.expected_ratio().detach()) == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        decider.scores["inner.weight:0"][:8] = -100.0
    assert float(decider.expected_ratio().detach()) == pytest.approx(0.65, abs=1e-5)
    decider.expected_ratio().backward()


def test_gates_are_drawn_from_the_hard_concrete_distribution(stripes):
    """The share of gates that are not exactly zero is the probability that the penalty counts with."""
    own = private(stripes)
    decider = gates(own, CHANNELS, Plan("gradual"))
    own.graph.module.train()
    with torch.no_grad():
        decider.scores["inner.weight:0"].fill_(-0.5)
    torch.manual_seed(0)
    draws = torch.stack([decider.weights(own.graph.module)["outer.weight"].detach()[0, :, 0, 0] != 0 for _ in range(500)])
    assert float(draws.float().mean()) == pytest.approx(float(decider.open("inner.weight:0")[0].detach()), abs=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_a_gate_multiplies_its_channel_once(stripes, training):
    """As if the channel itself were multiplied where it is read; with statistics of the batch and with running ones."""
    own = private(stripes)
    module = own.graph.module.train(training)
    net = own.workload.model.train(training)
    net.drop.eval()
    decider = gates(own, CHANNELS, Plan("gradual"))
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    weights = {name: value.detach() for name, value in decider.weights(module).items()}
    gate = (weights["outer.weight"] / dict(module.named_parameters())["outer.weight"].detach()).mean(dim=(0, 2, 3))
    assert weights.keys() == {"outer.weight"}
    assert float(gate.min()) < 1
    with torch.no_grad():
        gated = torch.func.functional_call(net, weights, (x,))
        net.outer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * gate[:, None, None],))
        wanted = net(x)
    assert torch.allclose(gated, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "savings", "ratio", "words"),
    [
        (Recipe((UnitChoice("outer.weight", "unstructured", 0.5, "l1"),), "none"), SAVINGS, 0.6, "axes"),
        (CHANNELS, {}, 0.6, "no latency"),
        (CHANNELS, SAVINGS, 0.3, "can't be reached"),
    ],
)
def test_gates_that_can_not_work_are_refused(stripes, recipe, savings, ratio, words):
    with pytest.raises(UsageError, match=words):
        Gates(private(stripes), recipe, Plan("gradual"), savings, ratio)
