"""What is given on the command line counts over a job's file and against a resumed run, also where it is the default."""

from __future__ import annotations

import pytest

from hwprune.cli.main import build_parser, main
from hwprune.searching.job import Job


class Enough(Exception):
    """Raised instead of searching."""


@pytest.fixture
def asked(monkeypatch):
    """The jobs that were about to be searched, and the sources of workloads that were about to be loaded."""
    from hwprune.searching import search
    from hwprune.workload import loading
    from tests.conftest import tiny_workload

    jobs = []

    def run_job(job, *_, **__):
        jobs.append(job)
        raise Enough

    monkeypatch.setattr(search, "run_job", run_job)
    monkeypatch.setattr(search, "check_job", lambda job: job)
    monkeypatch.setattr(loading, "load", lambda source, *_, **__: tiny_workload())
    return jobs


def job_of(asked, *words):
    with pytest.raises(Enough):
        main(["search", "--quiet", *map(str, words)])
    return asked[-1]


@pytest.fixture
def file(tmp_path):
    """A job's file that says the opposite of every default."""
    job = Job("mine.py:workload", target="cpu-openvino", trials=7, seed=5, sampler="tpe", all_patterns=True, estimate=True)
    job.write(tmp_path)
    return tmp_path / "job.toml"


def test_the_demo_is_searched_where_no_workload_is_given(asked):
    assert job_of(asked).workload == "demo:digits"
    assert job_of(asked, "--all-patterns").all_patterns
    assert not job_of(asked).all_patterns


def test_a_job_s_own_workload_counts_where_none_is_given(asked, file):
    job = job_of(asked, "--job", file)
    assert (job.workload, job.all_patterns, job.estimate, job.trials, job.seed) == ("mine.py:workload", True, True, 7, 5)


def test_a_job_without_a_workload_is_of_the_demo(asked, tmp_path):
    (tmp_path / "job.toml").write_text("schema = 1\n")
    assert job_of(asked, "--job", tmp_path / "job.toml").workload == "demo:digits"


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["demo:digits"], "workload", "demo:digits"),
        (["--target", "cpu"], "target", "cpu"),
        (["--trials", "60"], "trials", 60),
        (["--seed", "0"], "seed", 0),
        (["--sampler", "knapsack"], "sampler", "knapsack"),
        (["--no-all-patterns"], "all_patterns", False),
        (["--no-estimate"], "estimate", False),
    ],
)
def test_a_default_that_is_given_counts_over_the_file(asked, file, words, field, value):
    assert getattr(job_of(asked, *words, "--job", file), field) == value


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["demo:digits"], "workload"),
        (["--data", "x.npz"], "workload"),
        (["--target", "cpu"], "target"),
        (["--no-all-patterns"], "all_patterns"),
        (["--no-estimate"], "estimate"),
    ],
)
def test_a_default_that_is_given_is_refused_by_a_run_that_has_another(asked, file, capsys, words, refused):
    assert main(["search", *words, "--resume", "--out", str(file.parent)]) == 2
    assert f"keeps its {refused};" in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize("words", [[], ["mine.py:workload"], ["--all-patterns"], ["--target", "cpu-openvino"]])
def test_a_resumed_run_takes_what_it_has_already(asked, file, words):
    job = job_of(asked, *words, "--resume", "--out", file.parent)
    assert (job.workload, job.all_patterns, job.target) == ("mine.py:workload", True, "cpu-openvino")


@pytest.mark.parametrize(
    "words", [["mine.py:workload", "--data", "x.npz"], ["--data", "x.npz"], ["mine.py:workload", "data=x.npz"]]
)
def test_the_same_data_said_again_are_fine(asked, tmp_path, words):
    Job("mine.py:workload data=x.npz").write(tmp_path)
    assert job_of(asked, *words, "--resume", "--out", tmp_path).workload == "mine.py:workload data=x.npz"


def test_no_option_of_a_search_has_a_default_of_its_own():
    """Whatever a job holds is None in the parser unless it was given."""
    options = vars(build_parser().parse_args(["search"]))
    switches = {"resume", "quiet", "verbose", "json"}  # a job holds none of these
    given = {name for name, value in options.items() if value is not None and name not in {*switches, "command", "run", "words"}}
    assert given == set()


def test_the_help_tells_the_workload_and_both_words(capsys):
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: demo:digits)" in text
    for word in ("--all-patterns, --no-all-patterns", "--estimate, --no-estimate"):
        assert word in text
