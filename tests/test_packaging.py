"""What is installed: every package of the tree, and the files that they read."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "hwprune").rglob("__init__.py")}
    assert found | {"hwprune.profiles", "hwprune.search_spaces"} == listed


def test_data_files_are_listed():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for path in (ROOT / "hwprune").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts:
            package = next(p for p in path.parents if (p / "__init__.py").exists())
            globs = data[".".join(package.relative_to(ROOT).parts)]
            assert any(path.relative_to(package).match(glob) for glob in globs), path
