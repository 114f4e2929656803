"""The order of the house, check by check; ``python -m tests.house`` prints all of it."""

from __future__ import annotations

import ast

import pytest

from tests import house


@pytest.mark.parametrize("check", house.CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check):
    assert check() == []


def test_the_checks_see_what_is_out_of_order(monkeypatch):
    """Each check, given a house with one fault of its kind, finds it."""

    def broken(**more):
        found = dict(house.modules())
        path, _, _ = found["errors"]
        for name, text in more.items():
            module = name.replace("__", ".")
            place = house.PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
            found[module] = (place, text, ast.parse(text))
        monkeypatch.setattr(house, "modules", lambda: found)

    broken(common__optional="import torch, json\nimport nosuchpackage.part\n")
    assert house.missing_packages() == ["common.optional imports nosuchpackage: a clean checkout has no such package"]

    broken(common__long="x = 1\n" * 401)
    assert any("common.long has 401 lines" in fault for fault in house.long_modules())
    broken(common__middle="x = 1\n" * 301)
    assert any("common.middle" in fault for fault in house.long_modules())
    broken(common__big="class Big:\n" + "    x = 1\n" * 252)
    assert any("common.big.Big" in fault for fault in house.big_classes())
    broken(common__many="class Many:\n" + "".join(f"    x{i}: int\n" for i in range(15)))
    assert any("has 15 fields" in fault for fault in house.big_classes())
    broken(common__hidden="def f():\n    from hwprune.errors import UsageError\n")
    assert house.hidden_imports() == ["common.hidden.f imports hwprune.errors"]
    broken(common__again="class UsageError:\n    pass\n", common__errors="")
    assert {fault.split(":")[0] for fault in house.repeated_names()} == {"class UsageError", "file errors.py"}
    broken(common__words="knob = 1\n")
    assert house.old_words() == ["common.words: knob"]
    broken(common__words='"""Of course."""\n')
    assert len(house.fragments()) == 1
    broken(common__untested="x = 1\n" * 81)
    assert any("no tests/common/test_untested.py" in fault for fault in house.missing_tests())
    monkeypatch.setattr(
        house, "walks", lambda: [[("errors", "nothing"), ("latency.paired", "measure"), ("errors", "UsageError")]]
    )
    assert len(house.broken_walks()) == 4  # a name that is not there, a file twice, two steps without an import


def test_walks_are_short():
    """Counted in folders: from the command to the stopwatch at most 8, a sample to front.csv at most 9, --recover at most 6."""
    walks = house.walks()
    assert len(walks) == 10
    for walk, most in zip(walks, (2, 8, 9, 6, 8, 8, 8, 8, 4, 8), strict=True):
        folders = [module.rpartition(".")[0] for module, _ in walk]
        rooms = [folder for place, folder in enumerate(folders) if place == 0 or folder != folders[place - 1]]
        assert len(rooms) <= most and len(walk) <= 10
