"""Masks that are learned: they end at the recipe."""

from __future__ import annotations

import pytest
import torch

from hwprune import uniform_recipe
from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import MASK_LEARNERS, prune_gradually, recover
from hwprune.recovery.sparsifiers.mask_learner import Gradual
from tests.recovery.helpers import CHANNELS, HALF, Enough, coarse_gates, private, stop_after


@pytest.mark.parametrize("decider", [*sorted(MASK_LEARNERS), "gates"])
def test_every_decider_goes_on_from_its_checkpoint(stripes, tmp_path, decider):
    how = coarse_gates if decider == "gates" else decider
    plan = Plan("gradual", 4, checkpoint_s=0, checks=100, updates=8, rate=0.002)
    whole = prune_gradually(stripes, HALF, plan, how)
    with pytest.raises(Enough):  # 19 steps of rising sparsity, 13 after it
        prune_gradually(stripes, HALF, plan, how, folder=tmp_path, report=stop_after(11))
    calls = []
    resumed = prune_gradually(stripes, HALF, plan, how, folder=tmp_path, report=lambda *told: calls.append(told[0]))
    assert calls[0] == 11  # the step that was lost
    assert resumed.candidate.recipe == whole.candidate.recipe
    state = whole.candidate.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.candidate.module.state_dict().items())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_criteria_that_look_at_data_decide_less_often(stripes):
    for method, updates in (("l1", 20), ("taylor", 5)):
        recipe = Recipe((UnitChoice("inner.weight:0", "channel", 0.5, method),), "none")
        assert Gradual(private(stripes), recipe, Plan("gradual")).updates == updates


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


def test_a_gradual_plan_is_for_recipes_not_for_candidates(stripes):
    candidate = stripes.prune(CHANNELS)
    with pytest.raises(UsageError, match="prune_gradually"):
        recover(stripes, candidate, "gradual:1")
    with pytest.raises(UsageError, match="no training plan"):
        recover(stripes, candidate, "obs")
