"""What Optuna's dashboard shows, asked of the dashboard's own server."""

from __future__ import annotations

import json
from io import BytesIO
from urllib.parse import quote

import optuna
import pytest

import hwprune
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Failure, Trial
from hwprune.searching.study import dashboard
from tests.conftest import tiny_workload
from tests.records.test_trial import measured

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def get(app, path):
    status = []
    body = b"".join(
        app(
            {
                "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.input": BytesIO(),
                "wsgi.url_scheme": "http", "QUERY_STRING": "", "wsgi.errors": BytesIO(),
            },
            lambda line, _headers, *_: status.append(line),
        )
    )  # fmt: skip
    assert status[0].startswith("200"), (path, status, body[:200])
    return body


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    run = tmp_path_factory.mktemp("run") / "r"
    hwprune.search(tiny_workload(), target="cpu", out=run, trials=3, space="structured")
    store = optuna.artifacts.FileSystemArtifactStore(run / "artifacts")
    return optuna_dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}"), artifact_store=store)


def test_the_server_tells_what_was_cut_why_and_what_came_of_it(app):
    studies = json.loads(get(app, "/api/studies"))["study_summaries"]
    study = json.loads(get(app, f"/api/studies/{studies[0]['study_id']}"))
    notes = {trial["number"]: trial["note"]["body"] for trial in study["trials"] if trial["state"] == "Complete"}
    assert len(notes) >= 3
    for note in notes.values():
        assert "x [" in note and "proposed by knapsack" in note and "* conv1: channels" in note, note
    names = {one["name"] for trial in study["trials"] for one in trial["params"]}
    assert "conv1: channels kept" in names and not any(":weight" in name or "level" in name for name in names)
    assert "faster" in study["note"]["body"] or "dense" in study["note"]["body"]


def test_the_server_hands_out_the_front_as_a_picture(app):
    (study,) = json.loads(get(app, "/api/studies"))["study_summaries"]
    (made,) = json.loads(get(app, f"/api/studies/{study['study_id']}"))["artifacts"]
    assert made["filename"] == "front.png" and made["mimetype"] == "image/png"
    assert get(app, f"/artifacts/{study['study_id']}/{quote(made['artifact_id'])}").startswith(b"\x89PNG")


def test_a_newer_picture_takes_the_place_of_the_older(tmp_path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'a.db'}")
    picture = tmp_path / "front.png"
    dashboard.keep_picture(study, picture)  # none is there: a search without a front
    assert not (tmp_path / "artifacts").exists()
    for content in (b"one", b"two"):
        picture.write_bytes(content)
        dashboard.keep_picture(study, picture)
        assert [file.read_bytes() for file in (tmp_path / "artifacts").iterdir()] == [content]


def test_a_failed_trial_tells_its_reason():
    trial = Trial(3, Recipe(), "failed", failure=Failure("export", "no rule"), origin="tpe")
    assert dashboard.trial_note(trial, "a 3 of 4; b dropped") == (
        "**failed** (export): no rule\n\nproposed by tpe\n\n* a 3 of 4\n* b dropped"
    )


def test_a_measured_trial_tells_what_was_expected():
    trial = measured(3, 0.01, 2.0)
    note = dashboard.trial_note(trial, "")
    assert note.startswith("**2.00x") and "drop +0.0100" in note
