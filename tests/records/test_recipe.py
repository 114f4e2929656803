"""Recipes of files: every faulty row is told, none is left out."""

from __future__ import annotations

import pytest

from hwprune.common.files import Table
from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe

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
