"""What is built can be installed, and works without the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import hwprune

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "site", "dist", "*.egg-info", "__pycache__", "node_modules")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, and the source archive, of the files as they are."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    script = (
        "import sys; from setuptools import build_meta as build; out = sys.argv[1];"
        "print(build.build_sdist(out)); print(build.build_wheel(out))"
    )
    out = folder / "dist"
    out.mkdir()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(out)], cwd=source, check=True, capture_output=True, timeout=280
    )
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_everything_that_is_read_at_run_time_is_in_both(built):
    wheel, archive = built
    inside = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(archive) as opened:
        sources = {name.partition("/")[2] for name in opened.getnames()}
    for place, package in (("profiles", "hwprune/profiles"), ("search_spaces", "hwprune/search_spaces")):
        for path in (ROOT / place).glob("*.toml"):
            assert f"{package}/{path.name}" in inside and f"{place}/{path.name}" in sources
    kept = [path for path in (ROOT / "hwprune").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in kept:
        assert path.relative_to(ROOT).as_posix() in inside, f"{path} is not in the wheel: see package-data in pyproject.toml"
        assert path.relative_to(ROOT).as_posix() in sources


def test_the_wheel_searches_without_the_repository(built, tmp_path):
    target, home = tmp_path / "installed", tmp_path / "home"
    home.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(built[0]),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    environment = {**os.environ, "PYTHONPATH": str(target), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def hwprune(*words):
        line = [sys.executable, "-W", "ignore", "-m", "hwprune.cli.main", *words]
        return subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, check=True, timeout=280).stdout

    where = [sys.executable, "-c", "import hwprune; print(hwprune.__file__)"]
    found = subprocess.run(where, cwd=home, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(target)
    assert "a100" in hwprune("targets") and "structured" in hwprune("spaces")
    hwprune("search", "demo:digits", "--trials", "2", "--seed", "0", "--out", "run")
    record = json.loads((home / "run" / "record.json").read_text())
    assert record["finished"] and record["front"]
    assert (home / "run" / "report.html").is_file()
    log = (home / "run" / "search.log").read_text()
    assert "step 1/6: load and trace the model" in log and "step 6/6: measure the front again" in log and "[2/2] trial 1" in log
    assert (home / "run" / "candidates" / str(record["front"][0]["trial"]) / "model.onnx").is_file()


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    pairs = [re.fullmatch(r"([a-z-]+)(.*)", line).groups() for line in wanted]
    recipe = (ROOT / "conda" / "recipe.yaml").read_text()
    listed = re.findall(r"^    - ([a-z-]+) (\S+)$", recipe.partition("  run:\n")[2].partition("\ntests:")[0], re.MULTILINE)
    assert sorted(listed) == sorted((names.get(name, name), limits) for name, limits in pairs)
    assert f'version: "{hwprune.__version__}"' in recipe
