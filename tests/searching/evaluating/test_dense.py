"""Dense models that can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest

import hwprune
from hwprune.errors import WorkloadError
from hwprune.records import target as targets
from tests.conftest import tiny_workload


def test_nan_model_is_refused_with_what_to_do(tmp_path):
    from tests.workloads import nan_model

    with pytest.raises(WorkloadError, match="NaN"):
        hwprune.search(nan_model(), trials=2, out=tmp_path / "run")


def test_int8_target_refuses_a_model_that_is_not_quantised(tmp_path):
    profile = (
        (Path(targets.__file__).parents[2] / "profiles" / "cpu.toml")
        .read_text()
        .replace('precision = "fp32"', 'precision = "int8"')
    )
    (tmp_path / "int.toml").write_text(profile)
    with pytest.raises(WorkloadError, match="is int8, but the model is not quantised"):
        hwprune.search(tiny_workload("top1"), target=str(tmp_path / "int.toml"), trials=1, out=tmp_path / "run")
