"""Lottery tickets."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch

from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.recovery.plan import Plan
from hwprune.recovery.tickets import ticket_files
from hwprune.recovery.tickets.course import FILE
from hwprune.recovery.tickets.drawing import draw
from hwprune.recovery.tickets.ticket_plan import TicketPlan
from tests.recovery.conftest import make

PLAN = TicketPlan(rounds=2, share=0.5, rewind=0.1, seeds=2, training=Plan("finetune", 1, rate=0.01))


def test_tickets_and_a_transfer(stripes, tmp_path):
    other = dataclasses.replace(make(), name="other", train=stripes.workload.train[:4])
    steps = []
    found = draw(stripes, PLAN, other, lambda done, total, text: steps.append((done, total, text)))
    assert [p.sparsity for p in found.points] == pytest.approx([0.5, 0.75], abs=0.01)
    assert len(found.dense) == 2 and all(len(p.winning) == len(p.random) == 2 for p in (*found.points, *found.transferred))
    assert found.split == "test" and len(found.transferred) == 2
    assert [s[0] for s in steps] == list(range(steps[0][1]))
    paths = ticket_files.write(found, PLAN, "stripes", "top1", tmp_path / "t", "other")
    assert all(path.stat().st_size > 0 for path in paths)
    rows = list(csv.DictReader((tmp_path / "t" / "ticket.csv").read_text().splitlines()))
    assert [row["workload"] for row in rows] == ["stripes", "stripes", "other", "other"]
    assert "paired" in ticket_files.text(found, "stripes", "top1", "other")


@pytest.mark.parametrize("at", [1, 4, 6, 9, 13])
def test_a_drawing_that_was_stopped_ends_as_one_that_was_not(stripes, tmp_path, at):
    """In the first round, between rounds, between seeds, in a transfer."""
    other = dataclasses.replace(make(), name="other", train=stripes.workload.train[:2])
    plan = dataclasses.replace(PLAN, training=Plan("finetune", 0.5, rate=0.01))
    whole = draw(stripes, plan, other)

    class Enough(Exception):
        pass

    def stop(done, total, text):
        if done == at:
            raise Enough

    with pytest.raises(Enough):
        draw(stripes, plan, other, stop, tmp_path)
    steps = []
    found = draw(stripes, plan, other, lambda done, total, text: steps.append((done, total)), tmp_path)
    assert at - 4 <= steps[0][0] <= at  # a round is four trainings here
    assert [done for done, _ in steps] == list(range(steps[0][0], steps[0][1]))
    assert found.dense == whole.dense and found.points == whole.points and found.transferred == whole.transferred
    assert all(torch.equal(found.masks[name], mask) for name, mask in whole.masks.items())
    with pytest.raises(UsageError, match="other tickets"):
        draw(stripes, dataclasses.replace(plan, share=0.3), other, folder=tmp_path)
    (tmp_path / FILE).write_bytes(b"broken")
    with pytest.raises(UsageError, match="can't be read"):
        draw(stripes, plan, other, folder=tmp_path)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"share": 1.0}, {"rewind": 1.0}, {"seeds": 1}])
def test_plans_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        TicketPlan(**wrong)


def test_models_that_share_nothing(stripes):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    with pytest.raises(UsageError, match="share no layer"):
        draw(stripes, PLAN, dataclasses.replace(stripes.workload, model=other))


def test_a_pruner_of_the_users_model_never_forgets_a_database(tmp_path):
    with pytest.raises(ValueError, match="database"):
        Pruner(make(), tmp_path).forget()
