"""Every page of figures says which command made them, with which version, on which machine, and when."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwprune.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "figures").glob("*.md"))
COMMAND = re.compile(r"benchmarks/(\w+)\.py|make (bench[\w-]*|zoo|fuzz|cases)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_its_command_version_machine_and_date(page):
    text = page.read_text()
    found = COMMAND.findall(text)
    assert found, "no command"
    targets = (ROOT / "Makefile").read_text()
    for script, target in found:
        assert not script or (ROOT / "benchmarks" / f"{script}.py").is_file(), f"benchmarks/{script}.py is gone"
        assert not target or re.search(rf"^{target}:", targets, re.MULTILINE), f"make {target} is gone"
    assert re.search(r"20\d\d-\d\d-\d\d", text), "no date"
    assert re.search(r"AMD EPYC|Intel Xeon", text), "no machine"
    assert f"hwprune {VERSION}" in text, f"measured with another version than {VERSION}: measure again, or say that it is old"


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "figures.md").read_text()
    assert PAGES and all(f"figures/{page.name}" in index for page in PAGES)
    assert all(f"figures/{page.name}" in (ROOT / "mkdocs.yml").read_text() for page in PAGES)
