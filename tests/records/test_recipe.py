"""Recipes of files: every faulty row is told, none is left out."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.common.files import Table, dump_json
from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe, UnitChoice

GOOD = {"unit": "a:0", "pattern": "channel", "sparsity": 0.5, "method": "l1"}


def read(choices):
    table = Table({"schema": 1, "choices": choices}, "recipe.json")
    recipe = Recipe.from_table(table)
    table.finish()
    return recipe


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (GOOD | {"sparsity": 0}, "choices[1].sparsity: "),
        (GOOD | {"sparsity": 0.0}, "in (0, 1)"),
        (GOOD | {"sparsity": 1}, "in (0, 1)"),
        (GOOD | {"sparsity": 2}, "choices[1].sparsity: "),
        (GOOD | {"sparsity": "half"}, "choices[1].sparsity: "),
        (GOOD | {"unit": ""}, "choices[1].unit: "),
        (GOOD | {"pattern": ""}, "choices[1].pattern: "),
        (GOOD | {"method": ""}, "choices[1].method: "),
        (GOOD | {"method": 3}, "choices[1].method: "),
        (GOOD | {"levle": 3}, "choices[1].levle: "),
        ({}, "choices[1].unit: is missing"),
        ("conv1:0", "choices[1]: must be a table, got 'conv1:0'"),
        (None, "choices[1]: must be a table, got None"),
        ([GOOD], "choices[1]: must be a table"),
        (GOOD | {"pattern": "branch"}, "a branch is dropped as a whole"),
        (GOOD | {"unit": "b:0"}, "chooses twice for b:0"),
    ],
)
def test_a_faulty_row_is_told_with_its_place(row, text):
    with pytest.raises(UsageError) as caught:
        read([GOOD | {"unit": "b:0"}, row])
    assert text in str(caught.value)


def test_all_faulty_rows_are_told_at_once_each_once():
    rows = [GOOD, "x", GOOD | {"unit": "", "method": ""}, GOOD | {"sparsity": 0}, GOOD]
    with pytest.raises(UsageError) as caught:
        read(rows)
    assert len(caught.value.faults) == 5
    assert "chooses twice for a:0" in str(caught.value)


@pytest.mark.parametrize("choices", [{"unit": "a:0"}, "a:0", 3, None])
def test_choices_that_are_no_list_are_told(choices):
    with pytest.raises(UsageError, match="choices: must be a list of tables"):
        read(choices)


def test_good_rows_are_all_kept():
    assert [choice.unit for choice in read([GOOD | {"unit": "b:0"}, GOOD]).choices] == ["a:0", "b:0"]


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12)


# Hypothesis tries the text constants of the code under test too, "branch" among them, whose sparsity is always 1.
patterns = names.filter(lambda name: name != "branch")


choices = st.builds(UnitChoice, names, patterns, st.floats(0.001, 0.999), names) | st.builds(
    UnitChoice, names, st.just("branch"), st.just(1.0), names
)


@given(st.lists(choices, unique_by=lambda c: c.unit, max_size=6), st.randoms())
def test_recipes_survive_json_and_do_not_care_about_order(listed, random):
    recipe = Recipe(tuple(listed), "batchnorm")
    shuffled = list(listed)
    random.shuffle(shuffled)
    assert Recipe(tuple(shuffled), "batchnorm") == recipe
    table = Table(json.loads(dump_json(recipe.to_json())), "here")
    back = Recipe.from_table(table)
    table.finish()
    assert back == recipe
    assert back.digest == recipe.digest


def test_digest_covers_every_choice_and_nothing_else():
    base = UnitChoice("a:0", "channel", 0.5, "l1")
    digests = {
        Recipe((base,)).digest,
        Recipe((UnitChoice("b:0", "channel", 0.5, "l1"),)).digest,
        Recipe((UnitChoice("a:0", "head", 0.5, "l1"),)).digest,
        Recipe((UnitChoice("a:0", "channel", 0.25, "l1"),)).digest,
        Recipe((UnitChoice("a:0", "channel", 0.5, "l2"),)).digest,
        Recipe((base,), "batchnorm").digest,
        Recipe().digest,
    }
    assert len(digests) == 7


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, math.nan])
def test_senseless_choices_are_refused(sparsity):
    with pytest.raises(UsageError):
        UnitChoice("a:0", "channel", sparsity, "l1")


def test_a_unit_is_chosen_once():
    with pytest.raises(UsageError, match="a:0"):
        Recipe((UnitChoice("a:0", "channel", 0.5, "l1"), UnitChoice("a:0", "head", 0.5, "l1")))
