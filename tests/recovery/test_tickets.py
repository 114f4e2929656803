"""Lottery tickets."""

import csv
import dataclasses
import itertools
import json

import pytest
import torch

from hwprune.cli.main import main
from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.recovery.plan import Plan
from hwprune.recovery.tickets import drawing, ticket_files
from hwprune.recovery.tickets.course import FILE
from hwprune.recovery.tickets.drawing import draw
from hwprune.recovery.tickets.masks import initial, pruned, random_like
from hwprune.recovery.tickets.ticket_plan import TicketPlan
from hwprune.recovery.tickets.ticket_result import Interval, TicketRound

from .conftest import make

PLAN = TicketPlan(rounds=2, share=0.5, rewind=0.1, seeds=2, training=Plan("finetune", 1, rate=0.01))


def test_initial_values_are_new_and_repeatable(stripes):
    model, graph = stripes.workload.model, stripes.graph.module
    one, again, other = (initial(model, graph, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    trained = graph.state_dict()
    for name in ("stem.weight", "fc.weight", "fc.bias"):
        assert not torch.equal(one[name], other[name]) and not torch.equal(one[name], trained[name])
    assert (one["bn.weight"] == 1).all() and (one["bn.running_mean"] == 0).all()


def test_the_smallest_weights_of_all_layers_go(stripes):
    module = stripes.graph.module
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in module.named_parameters() if p.ndim > 1}
    first = pruned(module, masks, 0.5)
    second = pruned(module, first, 0.5)
    total = sum(m.numel() for m in masks.values())
    assert sum(int(m.sum()) for m in first.values()) == total - round(total / 2)
    assert sum(int(m.sum()) for m in second.values()) == pytest.approx(total / 4, abs=2)
    assert all((first[name] | ~second[name]).all() for name in masks)  # nothing comes back
    weights = dict(module.named_parameters())
    stays = torch.cat([weights[n].abs()[m] for n, m in first.items()])
    gone = torch.cat([weights[n].abs()[~m] for n, m in first.items()])
    assert stays.min() >= gone.max()
    shuffled = random_like(second, 7)
    assert all(int(shuffled[n].sum()) == int(second[n].sum()) for n in second)
    assert any(not torch.equal(shuffled[n], second[n]) for n in second)


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


def test_intervals():
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert TicketRound(0.8, (0.9, 0.91, 0.92), (0.5, 0.51, 0.52)).apart
    assert not TicketRound(0.8, (0.9, 0.5, 0.7), (0.5, 0.8, 0.6)).apart


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"share": 1.0}, {"rewind": 1.0}, {"seeds": 1}])
def test_plans_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        TicketPlan(**wrong)


def test_models_that_share_nothing(stripes):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    with pytest.raises(UsageError, match="share no layer"):
        draw(stripes, PLAN, dataclasses.replace(stripes.workload, model=other))


def test_the_command(tmp_path, capsys):
    words = ["--rounds", "1", "--share", "0.5", "--seeds", "2", "--epochs", "0.2", "--quiet"]
    assert main(["ticket", "demo:digits-vit", *words, "--out", str(tmp_path / "out")]) == 0
    assert "winning ticket" in capsys.readouterr().out
    assert main(["ticket", "demo:digits-vit", *words, "--out", str(tmp_path / "out")]) == 2  # it is not empty
    assert main(["ticket", "demo:digits-vit", *words, "--resume"]) == 2  # where?
    assert main(["ticket", "demo:digits-vit", *words, "--resume", "--out", str(tmp_path / "out")]) == 2  # it is finished
    assert "no unfinished drawing" in capsys.readouterr().err
    assert main(["ticket", "tests/workloads.py:good", *words]) == 2  # it has no train data
    assert "train=loader" in capsys.readouterr().err


def test_ctrl_c_and_resume(tmp_path, capsys, monkeypatch):
    words = ["ticket", "demo:digits-vit", "--rounds", "2", "--share", "0.5", "--seeds", "2", "--epochs", "0.2", "--json"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    expected = json.loads(capsys.readouterr().out)
    real, count = drawing._trained, itertools.count()

    def stop(*given):
        if next(count) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(drawing, "_trained", stop)
    assert main([*words, "--out", str(tmp_path / "out")]) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(drawing, "_trained", real)
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "unfinished" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert not (tmp_path / "out" / FILE).exists()


def test_a_pruner_of_the_users_model_never_forgets_a_database(tmp_path):
    with pytest.raises(ValueError, match="database"):
        Pruner(make(), tmp_path).forget()
