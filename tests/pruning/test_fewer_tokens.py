"""Recipes with fewer tokens, from the choice to the trained file."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

import hwprune
from hwprune.errors import UsageError
from hwprune.onnx_files import recipe_files
from hwprune.pruning.own_class import apply_to_module
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.recipe_words import described
from hwprune.pruning.uniform import uniform_recipe
from hwprune.records import target as targets
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.recover import prune_gradually, recover
from hwprune.searching.space import fitting, space_file
from tests.structure.token_models import Text, Vision


def vision(*, class_token: bool = True) -> hwprune.Workload:
    torch.manual_seed(0)
    model = Vision(class_token=class_token).eval()
    x = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        model.head.bias -= model(x).mean(dim=0)  # so that all classes are given
        y = model(x).argmax(dim=1)
    data = list(zip(x.split(16), y.split(16), strict=True))
    return hwprune.Workload("vision", model, (x[:1],), calibration=data, validation=data, train=data)


def text() -> hwprune.Workload:
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 40, (16, 12)), torch.ones(16, 12, dtype=torch.long)
    data = [((ids, mask), None)]
    return hwprune.Workload("text", Text().eval(), (ids[:1], mask[:1]), data, data, metric="agreement")


@pytest.fixture(scope="module")
def pruner() -> Pruner:
    return Pruner(vision())


def test_the_file_has_them(pruner: Pruner, tmp_path) -> None:
    neurons = uniform_recipe(pruner, "neuron", 0.5, "l2", "obs").choices
    tokens = uniform_recipe(pruner, "token", 0.25, compensation="obs").choices
    assert [choice.method for choice in tokens] == ["attention"] * 3
    candidate = pruner.prune(Recipe((*neurons, *tokens), "obs"))
    candidate.export(tmp_path)
    (x,) = next(pruner.workload.batches("validation"))[0]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(out, candidate.module(x).detach().numpy(), rtol=1e-3, atol=1e-4)
    # What is refitted is refitted with all tokens: the weights are those of the same recipe without.
    plain = pruner.prune(Recipe(neurons, "obs"))
    assert candidate.macs < 0.75 * plain.macs
    for (name, mine), (other, theirs) in zip(
        candidate.module.state_dict().items(), plain.module.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(mine, theirs)
    assert pruner.check_cut(candidate) < 1e-5
    # What was stored is the same again.
    stored = recipe_files.read_recipe(tmp_path / "recipe.json")
    again = pruner.prune(stored.recipe, keeps=stored.keeps)
    assert torch.equal(again.module(x), candidate.module(x))
    words = described(stored.recipe.choices, pruner.units)
    assert "after blocks.0.o: tokens 75% kept" in words


def test_recipes_that_do_not_fit(pruner: Pruner) -> None:
    name = next(unit.name for unit in pruner.units.values() if unit.role == "token")
    for choice in (
        UnitChoice(name, "token", 0.5, "l2"),
        UnitChoice(name, "merge", 0.5, "likeness"),
        UnitChoice(name, "head", 0.5, "l2"),
    ):
        with pytest.raises(UsageError, match="takes pattern token by attention"):
            pruner.prune(Recipe((choice,)))
    with pytest.raises(UsageError, match="removes none, or all"):
        uniform_recipe(pruner, "token", 0.01)
    with pytest.raises(UsageError, match="there are none of this form"):
        uniform_recipe(Pruner(text()), "merge", 0.5)
    with pytest.raises(UsageError, match="tokens are made fewer"):
        apply_to_module(pruner.workload.model, pruner.prune(uniform_recipe(pruner, "merge", 0.25)))


def test_it_is_trained_as_it_is(pruner: Pruner) -> None:
    candidate = pruner.prune(uniform_recipe(pruner, "token", 0.5, compensation="none"))
    trained = recover(pruner, candidate, "distill:12")
    assert trained.outcome.after.value > trained.outcome.before.value
    assert {name: int(keep.sum()) for name, keep in trained.candidate.keeps.items()} == dict.fromkeys(candidate.keeps, 8)


def test_what_is_learned_while_training_keeps_the_tokens_that_were_chosen(pruner: Pruner, tmp_path) -> None:
    tokens = uniform_recipe(pruner, "token", 0.5, compensation="none").choices
    recipe = Recipe((*uniform_recipe(pruner, "neuron", 0.5, "l2", "none").choices, *tokens), "none")
    made = prune_gradually(pruner, recipe, "gradual:2").candidate
    assert {choice.unit for choice in made.recipe.choices if choice.pattern == "token"} == {choice.unit for choice in tokens}
    made.export(tmp_path)  # runs the file, and compares


def test_a_dropped_attention_takes_its_place_along(pruner: Pruner) -> None:
    space = fitting.build(space_file.load("tokens"), pruner, targets.load("cpu"), "avx2")
    attention = next(unit for unit in space.units if unit.role == "branch")  # of the first block
    tokens = next(unit for unit in space.units if unit.role == "token")
    parameters = {}
    for unit in space.units:
        parameters |= unit.parameters(1 if unit in (attention, tokens) else 0, None, None)
    assert [choice.unit for choice in space.recipe(parameters).choices] == [attention.unit]
    everything = Recipe((UnitChoice(attention.unit, "branch", 1.0, "drop"), UnitChoice(tokens.unit, "token", 0.5, "attention")))
    assert set(pruner.prune(everything).keeps) == set()


def test_spaces() -> None:
    target = targets.load("cpu")
    space = fitting.build(space_file.load("tokens"), Pruner(vision()), target, "avx2")
    by_role = {unit.role: unit for unit in space.units}
    assert len(by_role["token"].levels["token"]) == 8
    assert max(by_role["merge"].levels["merge"]) == 0.5
    assert by_role["token"].methods == ("attention",)
    # A model that takes any number of tokens stays one, unless it is asked for.
    free = Pruner(text())
    within = dataclasses.replace(space_file.load("tokens"), fixed_length=False)
    space = fitting.build(within, free, target, "avx2")
    assert not {"token", "merge"} & {unit.role for unit in space.units}
    assert any("--space tokens" in reason for _, reason in space.left_out)
    space = fitting.build(space_file.load("tokens"), free, target, "avx2")
    assert [unit.role for unit in space.units if unit.role in ("token", "merge")] == ["token", "token"]
    # What was measured not to pay is left out.
    refused = {"token": "no speedup: measured", "merge": None}
    space = fitting.build(space_file.load("tokens"), free, target, "avx2", refused=refused)
    assert "token" not in {unit.role for unit in space.units}
    assert ("token", "no speedup: measured") in space.left_out
    tied = dataclasses.replace(space_file.load("tokens"), tie=True)
    space = fitting.build(tied, Pruner(vision()), target, "avx2")
    assert [len(unit.tied) for unit in space.units if unit.role in ("token", "merge")] == [2, 2]
