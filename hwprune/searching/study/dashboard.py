"""What Optuna's dashboard shows beside columns: a note on every trial, a note on the study, the front as a picture.

Notes are written where the package ``optuna-dashboard`` is installed, which knows how (``pip install 'hwprune[dashboard]'``); the
picture is an artifact of Optuna's own.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna

from hwprune.common.formatting import seconds, size, speedup
from hwprune.records.record import read_record
from hwprune.records.trial import MEASURED, Trial
from hwprune.report.text import summary

CUT = "cut"
"""User attribute of a trial: what is done to the model, in words, separated by "; "."""
ARTIFACTS = "artifacts"
"""Folder in the run directory: what ``optuna-dashboard --artifact-dir`` shows."""
PICTURE = "front picture"
"""User attribute of the study: identifier of the picture among its artifacts."""


def write_note(about: optuna.Trial | optuna.Study, text: str) -> None:
    """A note in Markdown on a trial or the study; nothing where the dashboard isn't installed."""
    try:
        import optuna_dashboard
    except ImportError:
        return
    with _no_warnings():
        optuna_dashboard.save_note(about, text)


def trial_note(trial: Trial, cut: str) -> str:
    """What came of a trial and what was done to the model, in Markdown."""
    return "\n".join([_outcome(trial), "", *_origins(trial), "", *(f"* {line}" for line in cut.split("; ") if line)])


def show_run(study: optuna.Study, run: Path) -> None:
    """The picture of a run that has its report, and its summary as the study's note."""
    keep_picture(study, run / "front.png")
    write_note(study, f"```\n{summary(read_record(run))}\n```\n")


def keep_picture(study: optuna.Study, picture: Path) -> None:
    """Make a picture an artifact of the study, in place of the one of before."""
    if not picture.is_file():
        return
    folder = picture.parent / ARTIFACTS
    folder.mkdir(exist_ok=True)
    with _no_warnings():
        store = optuna.artifacts.FileSystemArtifactStore(folder)
        known = study.user_attrs.get(PICTURE)
        if known is not None:
            with picture.open("rb") as content:
                store.write(known, content)
            return
        made = optuna.artifacts.upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=study)
    study.set_user_attr(PICTURE, made)


def _outcome(trial: Trial) -> str:
    if trial.state != MEASURED:
        assert trial.failure is not None
        return f"**{trial.state}** ({trial.failure.stage}): {trial.failure.reason}"
    assert trial.speedup is not None and trial.metric is not None and trial.latency is not None and trial.size_bytes is not None
    times = speedup(trial.speedup.value, trial.speedup.ci_low, trial.speedup.ci_high)
    return (
        f"**{times}**, {seconds(trial.latency.value)} a batch, {size(trial.size_bytes)}; "
        f"metric on validation {trial.metric.value:.4f}, drop {trial.drop:+.4f}"
    )


def _origins(trial: Trial) -> Iterator[str]:
    facts: dict[str, Any] = dict(trial.predicted)
    if {"ratio", "drop"} <= set(facts) and facts["ratio"]:
        yield f"expected {1 / facts['ratio']:.2f}x, drop {facts['drop']:+.4f}; proposed by {trial.origin}"
    else:
        yield f"proposed by {trial.origin}"


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
