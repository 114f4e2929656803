"""Masks that are decided while a model is trained: exact sparsities, straight-through gradients, and one recipe at the end."""

import copy
import dataclasses

import pytest
import torch

from hwprune import uniform_recipe
from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import MASK_LEARNERS, prune_gradually, recover
from hwprune.recovery.sparsifiers.gates import Gates
from hwprune.recovery.sparsifiers.growing import Growing
from hwprune.recovery.sparsifiers.mask_learner import Gradual
from hwprune.recovery.sparsifiers.movement import Movement
from hwprune.recovery.sparsifiers.platon import Platon

CHANNELS = Recipe((UnitChoice("inner.weight:0", "channel", 0.5, "l2"),), "none")


def private(stripes):
    return Pruner(dataclasses.replace(stripes.workload, model=copy.deepcopy(stripes.workload.model)))


@pytest.mark.parametrize("decider", sorted(MASK_LEARNERS))
def test_axes_end_at_the_recipes_sparsity_in_a_model_that_is_cut(stripes, decider):
    before = {name: value.clone() for name, value in stripes.workload.model.state_dict().items()}
    made = prune_gradually(stripes, CHANNELS, Plan("gradual", 3, updates=5), decider)
    (choice,) = made.candidate.recipe.choices
    assert (choice.unit, choice.pattern) == ("inner.weight:0", "channel")
    assert choice.sparsity == pytest.approx(0.5, abs=0.07)
    assert made.candidate.module.state_dict()["inner.weight"].shape[0] == 16 - round(16 * choice.sparsity)
    assert made.candidate.fingerprint == stripes.fingerprint
    assert made.seconds >= made.outcome.seconds and made.examples > made.outcome.examples
    assert all(torch.equal(value, before[name]) for name, value in stripes.workload.model.state_dict().items())


@pytest.mark.parametrize("decider", sorted(MASK_LEARNERS))
def test_weights_end_at_the_recipes_sparsity_and_stay_zero(stripes, decider):
    recipe = uniform_recipe(stripes, "unstructured", 0.75, criterion="l1", compensation="none")
    made = prune_gradually(stripes, recipe, Plan("gradual", 3, updates=5), decider)
    gone = total = 0
    for name, mask in made.candidate.masks.items():
        weight = dict(made.candidate.module.named_parameters())[name]
        assert (weight[~mask] == 0).all()
        gone, total = gone + int((~mask).sum()), total + mask.numel()
    assert gone / total == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("decider", ["gradual", "movement", "platon"])
def test_axes_and_weights_together(stripes, decider):
    choices = (*CHANNELS.choices, UnitChoice("outer.weight", "unstructured", 0.5, "l1"))
    made = prune_gradually(stripes, Recipe(choices, "none"), Plan("gradual", 2, updates=4), decider)
    weight, mask = made.candidate.module.state_dict()["outer.weight"], made.candidate.masks["outer.weight"]
    assert weight.shape == mask.shape == (8, 8, 3, 3)
    assert (weight[~mask] == 0).all()
    assert float((~mask).float().mean()) == pytest.approx(0.5, abs=0.01)  # of what the cut leaves


@pytest.mark.parametrize("schedule", ["linear", "exponential", "iterative:3", "one-shot"])
def test_every_schedule_ends_at_the_recipe(stripes, schedule):
    made = prune_gradually(stripes, CHANNELS, Plan("gradual", 1, updates=4, schedule=schedule))
    assert made.candidate.recipe.choices[0].sparsity == 0.5


def test_a_branch_goes_when_the_model_is_cut(stripes):
    choices = (UnitChoice("add", "branch", 1.0, "drop"), UnitChoice("stem.weight", "unstructured", 0.5, "l1"))
    made = prune_gradually(stripes, Recipe(choices, "none"), Plan("gradual", 1, updates=4))
    assert "outer.weight" not in made.candidate.module.state_dict()
    with pytest.raises(UsageError, match="nothing to prune"):
        prune_gradually(stripes, Recipe(choices[:1], "none"), "gradual:1")


def test_two_of_four_comes_at_half_of_the_way(stripes):
    own = private(stripes)
    plan = Plan("gradual", 1)
    decider = Gradual(own, Recipe((UnitChoice("outer.weight", "2:4", 0.5, "l1"),), "none"), plan)
    assert not decider.decide(0.49).masks
    mask = decider.decide(0.5).masks["outer.weight"]
    assert float(mask.float().mean()) == 0.5


def test_movement_scores_are_the_gradient_times_the_weight(stripes):
    """Sanh et al. 2020, equation 3: dL/dS = dL/dW' * W; of a channel, the sum over what makes it."""
    own = private(stripes)
    module = own.graph.module
    images, labels = stripes.workload.train[0]
    for unit, pattern in (("outer.weight", "unstructured"), ("inner.weight:0", "channel")):
        decider = Movement(own, Recipe((UnitChoice(unit, pattern, 0.5, "l1"),), "none"), Plan("gradual", 1))
        replaced = decider.weights(module)
        loss = torch.nn.functional.cross_entropy(torch.func.functional_call(module, replaced, (images,)), labels)
        loss.backward()
        plain = torch.nn.functional.cross_entropy(module(images), labels)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
        names = list(replaced)
        gradients = torch.autograd.grad(plain, [dict(module.named_parameters())[name] for name in names])
        products = [g * dict(module.named_parameters())[name] for g, name in zip(gradients, names, strict=True)]
        expected = products[0] if pattern == "unstructured" else sum(p.reshape(16, -1).sum(dim=1) for p in products)
        assert torch.allclose(decider.scores[unit].grad, expected, atol=1e-5)
        if pattern == "channel":
            assert set(names) == {"inner.weight", "bn2.weight", "bn2.bias"}  # not what reads it


def test_a_masked_weight_may_come_back_in_movement_and_not_in_gradual(stripes):
    own = private(stripes)
    decider = Movement(
        own, Recipe((UnitChoice("outer.weight", "unstructured", 0.5, "l1"),), "none"), Plan("gradual", 1, updates=4)
    )
    score = decider.scores["outer.weight"]
    with torch.no_grad():
        score.copy_(torch.arange(score.numel(), dtype=torch.float32).reshape(score.shape))
    optimizer = torch.optim.SGD(own.graph.module.parameters(), lr=0.1)
    decider.after_step(own.graph.module, optimizer, 0.5)
    first = decider.decision.masks["outer.weight"]
    with torch.no_grad():
        score.copy_(score.max() - score)
    decider.after_step(own.graph.module, optimizer, 1.0)
    assert (decider.decision.masks["outer.weight"] & ~first).any()
    weight = dict(own.graph.module.named_parameters())["outer.weight"]
    assert (weight[~decider.decision.masks["outer.weight"]] == 0).all()
    assert (weight[decider.decision.masks["outer.weight"]] != 0).all()


def test_platon_is_sensitivity_times_uncertainty(stripes):
    own = private(stripes)
    decider = Platon(own, Recipe((UnitChoice("outer.weight", "unstructured", 0.5, "l1"),), "none"), Plan("gradual", 1))
    weight = dict(own.graph.module.named_parameters())["outer.weight"]
    optimizer = torch.optim.AdamW([weight])
    mean = uncertain = torch.zeros_like(weight)
    for seed in range(3):
        with torch.no_grad():
            weight.normal_(generator=torch.Generator().manual_seed(10 + seed))  # as an optimizer's step leaves them
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        now = (weight.detach() * weight.grad).abs()
        decider.after_step(own.graph.module, optimizer, (seed + 1) / 4)
        mean = 0.85 * mean + 0.15 * now
        uncertain = 0.95 * uncertain + 0.05 * (now - mean).abs()
    assert torch.allclose(decider.scores["outer.weight"], mean * uncertain, atol=1e-6)
    assert 0.4 < float((weight == 0).float().mean()) <= 0.5


def test_growing_regularisation_empties_what_is_to_go_before_it_goes(stripes):
    from hwprune.recovery.loop.run import train

    own = private(stripes)
    decider = Growing(own, CHANNELS, Plan("gradual"))
    parameters = dict(own.graph.module.named_parameters())

    def left():
        return sum(float(parameters[name].detach()[goes].square().sum()) for name, goes in decider._goes.items())

    before, held = left(), []
    decider.hold = lambda module, optimizer: held.append(left())  # nothing is zeroed: what is small has become so
    train(own.graph.module, stripes.workload, Plan("gradual", 4, updates=10, task=1.0), sparsifier=decider, keep_best=False)
    assert 0.5 * before < held[3]  # it begins slowly
    assert held[-1] < 0.01 * before


def test_soft_movement_is_not_for_groups(stripes):
    with pytest.raises(UsageError, match="2:4"):
        Movement(private(stripes), Recipe((UnitChoice("outer.weight", "2:4", 0.5, "l1"),), "none"), Plan("gradual"), soft=True)


# -- gates -----------------------------------------------------------------------------------------

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
    draws = torch.stack([decider.weights(own.graph.module)["bn2.weight"].detach() != 0 for _ in range(500)])
    assert float(draws.float().mean()) == pytest.approx(float(decider.open("inner.weight:0")[0].detach()), abs=0.02)


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


def test_a_gradual_plan_is_for_recipes_not_for_candidates(stripes):
    candidate = stripes.prune(CHANNELS)
    with pytest.raises(UsageError, match="prune_gradually"):
        recover(stripes, candidate, "gradual:1")
    with pytest.raises(UsageError, match="no training plan"):
        recover(stripes, candidate, "obs")
