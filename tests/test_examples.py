"""The examples run as they are written."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def test_every_example_is_a_module_that_says_how_it_is_run():
    files = sorted(FOLDER.glob("*.py"))
    assert len(files) >= 4
    for path in files:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # imports nothing that hwprune does not need
        assert f"examples/{path.name}" in module.__doc__


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((FOLDER / "tour.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
    out = capsys.readouterr().out
    assert "largest difference: 0.0" in out and "integrity  True" in out
    assert "can be cut" in names["hwprune"].inspect(names["workload"])._repr_html_()
    assert "trial" in names["result"]._repr_html_()


@pytest.mark.slow
def test_the_onnx_only_example_is_searched(tmp_path):
    subprocess.run([sys.executable, FOLDER / "onnx_only.py"], cwd=tmp_path, check=True, timeout=280)
    words = ["inspect", "onnx_only/model.onnx"]
    found = subprocess.run(
        [sys.executable, "-m", "hwprune.cli.main", *words], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "axes can be cut" in found.stdout
