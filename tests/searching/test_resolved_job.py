"""What a job names is checked before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import hwprune
from hwprune.errors import UsageError
from hwprune.records import target as targets
from tests.conftest import tiny_workload


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"channel", "head"', '"chanel", "head"', "names 'chanel', which is no pattern"),
        ("avx512 = 16", "avx-512 = 16", "has the key 'avx-512'"),
        ('runtime = "onnxruntime-cpu"', 'runtime = "pytorch-cpu"\noptions = {moode = "compile"}', "has no option moode"),
        ('precision = "fp32"', 'precision = "fp16"', "does not run fp16"),
        ('device = "cpu"', 'device = "cuda"', "runs on cpu"),
    ],
)
def test_faults_of_a_profile(tmp_path, old, new, wanted):
    text = (Path(targets.__file__).parents[2] / "profiles" / "cpu.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    with pytest.raises(UsageError) as caught:
        hwprune.search(tiny_workload("top1"), target=str(tmp_path / "mine.toml"), trials=1, out=tmp_path / "run")
    assert wanted in str(caught.value)
