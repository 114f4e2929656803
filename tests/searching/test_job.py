"""A job as a value, as job.toml, and as others may see it."""

from __future__ import annotations

import os
import stat

import pytest

from hwprune.errors import UsageError
from hwprune.recovery.plan import Plan
from hwprune.searching.job import Job

SECRET = "postgresql://me:geheim@127.0.0.1:1/db"


def test_a_password_stays_in_a_file_that_only_the_user_reads(tmp_path):
    job = Job("demo:digits", storage=SECRET)
    assert "geheim" not in str(job.to_json()) and job.to_json()["storage"] == "postgresql://me:***@127.0.0.1:1/db"
    job.write(tmp_path)
    assert stat.S_IMODE((tmp_path / "job.toml").stat().st_mode) == 0o600
    assert Job.read(tmp_path) == job


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_readable_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        Job("demo:digits").write(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "job.toml").stat().st_mode) == mode


def test_a_training_is_parsed_once_and_is_no_word_of_the_file(tmp_path):
    job = Job("demo:digits", recover="distill:2", seed=7, quantize="int8,fp16")
    assert job.training == Plan("distill", 2.0, seed=7) and job.precisions == ("int8", "fp16")
    assert "training" not in job.to_json() and "precisions" not in job.to_json()
    job.write(tmp_path)
    assert Job.read(tmp_path).training == job.training
    assert Job("demo:digits").training is None and Job("demo:digits", recover="obs+batchnorm").training is None


def test_every_fault_is_told_at_once():
    with pytest.raises(UsageError) as error:
        Job("demo:digits", trials=-1, seed=-1, recover="fintune:2", quantize="int7", max_drop=-0.1)
    assert len(error.value.faults) == 5 and "Did you mean finetune:EPOCHS?" in str(error.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"trials": -1}, "trials"),
        ({"max_drop": -0.1}, "max_drop"),
        ({"recover": "finetune:many"}, "recover"),
        ({"min_speedup": 0}, "min_speedup"),
        ({"trial_timeout_s": 0}, "trial_timeout"),
    ],
)
def test_senseless_jobs_are_refused(change, text):
    with pytest.raises(UsageError, match=text):
        Job("demo:digits", **change)


def test_jobs_survive_toml(tmp_path):
    job = Job('file.py:f key=wörd "x"', max_drop=0.01, time_s=30.0, memory_limit=10**9)
    job.write(tmp_path)
    assert Job.read(tmp_path) == job


def test_unknown_keys_and_wrong_values_are_told_together(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text("schema = 1\ntrials = -3\nsamplr = 'x'\nmax_drop = -0.1\n")
    with pytest.raises(UsageError) as error:
        Job.read_file(path)
    text = str(error.value)
    assert "3 problems" in text and all(word in text for word in ("samplr", "trials must be", "max_drop must be"))


@pytest.mark.parametrize("given", [{"trials": "many"}, {"max_drop": "1%"}, {"seed": True}, {"time_s": "10m"}])
def test_what_is_no_number_is_the_only_fault(given):
    with pytest.raises(UsageError) as caught:
        Job("demo:digits", **given)
    ((name, value),) = given.items()
    assert len(caught.value.faults) == 1
    assert name in caught.value.faults[0]
    assert repr(value) in caught.value.faults[0]
