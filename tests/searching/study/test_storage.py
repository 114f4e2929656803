"""Storages that can't be opened, and what is said of them."""

from __future__ import annotations

import contextlib
import sqlite3

import optuna
import pytest

import hwprune
from hwprune.errors import HwpruneError, UsageError
from hwprune.searching.progress import Progress
from hwprune.searching.study.storage import create_study, load_study, storage_errors
from hwprune.searching.study.store import Store


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql://me:geheim@127.0.0.1:1/db",  # nobody listens
        "postgresql://me@127.0.0.1:1/db?password=geheim",
        "nodriver://me:geheim@127.0.0.1/db",
    ],
)
def test_no_error_shows_the_password(storage):
    with pytest.raises(HwpruneError) as error, storage_errors(storage):
        load_study(storage)
    shown = f"{error.value!s} {error.value!r} {error.value.__cause__}"
    assert "geheim" not in shown and "***" in str(error.value)


@pytest.mark.parametrize("name", ["plain", "a?b", "a#b", "a%20b", "50% ?", "ü x"])
def test_the_study_lies_in_the_run_directory_whatever_it_is_called(tmp_path, name):
    run = tmp_path / name
    run.mkdir()
    study = create_study(Store.default_storage(run))
    study.add_trial(optuna.trial.create_trial(values=[0.1, 2.0], params={}, distributions={}))
    assert (run / "study.db").is_file() and [path.name for path in tmp_path.iterdir()] == [name]
    run.rename(tmp_path / "moved ?")
    assert len(load_study(Store.default_storage(tmp_path / "moved ?")).get_trials()) == 1


def test_two_runs_that_share_the_part_before_a_question_mark(tmp_path):
    for name in ("a?b", "a?c"):
        (tmp_path / name).mkdir()
        create_study(Store.default_storage(tmp_path / name)).set_user_attr("name", name)
    for name in ("a?b", "a?c"):
        assert load_study(Store.default_storage(tmp_path / name)).user_attrs["name"] == name


def test_a_database_that_is_not_there_is_told_before_anything_takes_long(tmp_path):
    from tests.conftest import tiny_workload

    for storage, word in (("postgresql://me:geheim@127.0.0.1:1/db", "failed"), ("nodriver://me@127.0.0.1/db", "driver")):
        told = []

        class Told(Progress):
            def stage(self, text, done=0, total=0):
                told.append(text)  # noqa: B023 - called within the loop

        with pytest.raises(HwpruneError, match=word) as error:
            hwprune.search(tiny_workload(), trials=1, out=tmp_path / "run", storage=storage, progress=Told())
        assert not told and "geheim" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_who_joins_while_tables_are_being_made_leaves_them_alone(tmp_path):
    """To open them at that moment would write their version twice: then one of the two fails, and it may be the search."""
    create_study(f"sqlite:///{tmp_path / 'done.db'}")
    half = tmp_path / "half?.db"
    with contextlib.closing(sqlite3.connect(tmp_path / "done.db")) as done, contextlib.closing(sqlite3.connect(half)) as other:
        made = [text for (text,) in done.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
        for place, text in enumerate(made):  # every moment of it
            with pytest.raises(UsageError, match="holds no hwprune study"):
                load_study(f"sqlite-file:{half}")
            assert other.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0] <= place
            other.execute(text)
            other.commit()
        with pytest.raises(UsageError, match="holds no hwprune study"):
            load_study(f"sqlite-file:{half}")
        assert other.execute("SELECT count(*) FROM alembic_version").fetchone() == (0,)
    assert load_study(f"sqlite:///{tmp_path / 'done.db'}").study_name == "hwprune"
