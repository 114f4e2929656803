"""Recipes, measurements, trials, fronts, metrics, files and units."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.common import formatting
from hwprune.common.files import Table, dump_json, dump_toml, read_json, read_toml, write_atomic
from hwprune.errors import UnknownNameError, UsageError
from hwprune.records import pareto
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.records.trial import Failure, Trial
from hwprune.workload import metrics

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12)
# Hypothesis tries the text constants of the code under test too, "branch" among them, whose sparsity is always 1.
patterns = names.filter(lambda name: name != "branch")
choices = st.builds(UnitChoice, names, patterns, st.floats(0.001, 0.999), names) | st.builds(
    UnitChoice, names, st.just("branch"), st.just(1.0), names
)


@given(st.lists(choices, unique_by=lambda c: c.unit, max_size=6), st.randoms())
def test_recipes_survive_json_and_do_not_care_about_order(listed, random):
    recipe = Recipe(tuple(listed), "batchnorm")
    shuffled = list(listed)
    random.shuffle(shuffled)
    assert Recipe(tuple(shuffled), "batchnorm") == recipe
    table = Table(json.loads(dump_json(recipe.to_json())), "here")
    back = Recipe.from_table(table)
    table.finish()
    assert back == recipe
    assert back.digest == recipe.digest


def test_digest_covers_every_choice_and_nothing_else():
    base = UnitChoice("a:0", "channel", 0.5, "l1")
    digests = {
        Recipe((base,)).digest,
        Recipe((UnitChoice("b:0", "channel", 0.5, "l1"),)).digest,
        Recipe((UnitChoice("a:0", "head", 0.5, "l1"),)).digest,
        Recipe((UnitChoice("a:0", "channel", 0.25, "l1"),)).digest,
        Recipe((UnitChoice("a:0", "channel", 0.5, "l2"),)).digest,
        Recipe((base,), "batchnorm").digest,
        Recipe().digest,
    }
    assert len(digests) == 7


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, math.nan])
def test_senseless_choices_are_refused(sparsity):
    with pytest.raises(UsageError):
        UnitChoice("a:0", "channel", sparsity, "l1")


def test_a_unit_is_chosen_once():
    with pytest.raises(UsageError, match="a:0"):
        Recipe((UnitChoice("a:0", "channel", 0.5, "l1"), UnitChoice("a:0", "head", 0.5, "l1")))


def test_all_faults_of_a_file_at_once(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('name = 3\nlevels = "many"\nrols = ["head"]\nshare = 2.0\n')
    table = read_toml(path)
    table.text("name")
    table.integer("levels")
    table.texts("roles", [])
    table.number("share", low=0, high=1)
    table.text("missing")
    with pytest.raises(UsageError) as caught:
        table.finish()
    text = str(caught.value)
    assert len(caught.value.faults) == 5
    for part in (
        "name: must be a text, got 3",
        "levels: must be a whole number",
        "did you mean 'roles'",
        "[0, 1]",
        "missing: is missing",
    ):
        assert part in text


@pytest.mark.parametrize(("content", "text"), [("a = ", "not valid TOML"), ("\xff", "TOML")])
def test_broken_toml_says_so(tmp_path, content, text):
    path = tmp_path / "x.toml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=text):
        read_toml(path)


def test_missing_files_say_so(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_json(tmp_path / "no.json")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.one_of(
            st.text(),
            st.integers(-(2**53), 2**53),
            st.booleans(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.lists(st.integers(0, 9)),
        ),
    )
)
def test_written_toml_reads_back(values):
    import tomllib

    assert tomllib.loads(dump_toml(values)) == values


def test_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_measurements_are_checked_at_birth():
    with pytest.raises(ValueError, match="finite"):
        Measurement(math.nan, "x", 0, 1, 3)
    with pytest.raises(ValueError, match="upside down"):
        Measurement(1.0, "x", 2, 1, 3)


def measured(number, drop, speedup):
    one = Measurement(speedup, "x", speedup, speedup, 1, {"clock": "wall"})
    return Trial(number, Recipe((UnitChoice("a:0", "channel", 0.5, "l1"),)), "measured", one, drop, one, one, 10, 20, 30)


@pytest.mark.parametrize("trial", [measured(3, 0.01, 1.5), Trial(4, Recipe(), "failed", failure=Failure("run", "it <died>"))])
def test_trials_survive_json(trial):
    table = Table(json.loads(dump_json(trial.to_json())), "here")
    back = Trial.from_table(table)
    table.finish()
    assert back == trial


def test_trials_without_numbers_are_not_measured():
    with pytest.raises(ValueError, match="lacks numbers"):
        Trial(1, Recipe(), "measured")


points = st.lists(st.tuples(st.integers(-5, 20), st.integers(0, 20)), max_size=25)


@given(points)
def test_front_against_brute_force(listed):
    found = pareto.non_dominated(listed, lambda p: p)
    expected = {p for p in listed if not any((q[0] <= p[0] and q[1] >= p[1]) and q != p for q in listed)}
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [p[1] for p in found] == sorted(p[1] for p in found)


@given(points)
def test_layers_partition(listed):
    layers = pareto.layers([tuple(p) for p in listed], lambda p: p)
    assert sorted(p for layer in layers for p in layer) == sorted(listed)


@settings(deadline=None)
@given(points)
def test_hypervolume_counts_dominated_cells(listed):
    """On whole numbers the dominated area is a number of unit cells."""
    cells = sum(any(drop <= x and speedup >= y + 1 for drop, speedup in listed) for x in range(-5, 15) for y in range(1, 20))
    assert pareto.hypervolume([(float(a), float(b)) for a, b in listed], (15.0, 1.0)) == cells


def test_wilson_interval_by_hand():
    """p = 0.5, n = 100: centre (0.5 + z^2/200) / (1 + z^2/100), half z/(1 + z^2/100) sqrt(0.0025 + z^2/40000)."""
    low, high = metrics.wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert metrics.wilson(0.0, 10)[0] == 0.0
    assert metrics.wilson(1.0, 10)[1] == 1.0


def test_metrics_by_hand():
    logits = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1]])
    assert metrics.top1(logits, torch.tensor([1, 2])).tolist() == [1.0, 0.0]
    assert metrics.top5(logits, torch.tensor([1, 2])).tolist() == [1.0, 1.0]
    dense = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    assert metrics.agreement(logits, dense).tolist() == [1.0, 0.0]
    assert metrics.psnr(torch.full((1, 4), 0.5), torch.full((1, 4), 0.4)).item() == pytest.approx(20.0, abs=1e-4)
    uniform = metrics.negative_log_likelihood(torch.zeros(2, 3, 7), torch.tensor([[1, 2, -100], [0, -100, -100]]))
    assert uniform.tolist() == pytest.approx([math.log(7)] * 2)
    assert metrics.get("perplexity").reduce(uniform).value == pytest.approx(7.0)


def test_drop_is_positive_when_worse():
    assert metrics.get("top1").drop(0.9, 0.8) == pytest.approx(0.1)
    assert metrics.get("perplexity").drop(10.0, 12.0) == pytest.approx(2.0)


def test_unknown_metric_lists_the_choices():
    with pytest.raises(UnknownNameError, match="top1"):
        metrics.get("top11")


def test_units():
    assert formatting.seconds(0.00123) == "1.23 ms"
    assert formatting.seconds(4.56e-5) == "45.6 us"
    assert formatting.count(669_000) == "669 k"
    assert formatting.size(2_680_000) == "2.68 MB"
    assert formatting.duration(3723) == "1:02:03"
    assert formatting.speedup(1.5, 1.48, 1.52) == "1.50x [1.48, 1.52]"


def test_divergence_by_what_the_outputs_are():
    """KL for scores of classes, masked positions left out; a share of the variance for everything else."""
    from hwprune.workload import metrics, scoring

    draw = torch.Generator().manual_seed(0)
    dense, found = torch.randn(8, 5, generator=draw), torch.randn(8, 5, generator=draw)
    labels = torch.arange(8) % 5

    def of(metric, a, b, target):
        return scoring.divergence(metrics.get(metric), [(a,)], [(b,)], [target])

    kl = float(torch.nn.functional.kl_div(found.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean"))
    assert of("top1", found, dense, labels).value == pytest.approx(kl, rel=1e-5)
    assert of("top1", dense, dense, labels).value == 0
    own = lambda outputs, targets: (outputs - targets).abs().mean(1)  # noqa: E731
    mse = float((found - dense).square().mean() / dense.var(unbiased=False))
    assert of(own, found, dense, dense.clone()).value == pytest.approx(mse, rel=1e-5)
    assert of(own, found, dense, labels).unit == "nats"  # a whole number an example: classes
    single = of(own, found[:, :1], dense[:, :1], labels)
    assert single.unit == "variance" and single.value > 0.1
    words, told = torch.randn(2, 3, 7, generator=draw), torch.randn(2, 3, 7, generator=draw)
    targets = torch.tensor([[1, 2, -100], [3, -100, -100]])
    each = (words.softmax(-1) * (words.log_softmax(-1) - told.log_softmax(-1))).sum(-1)
    wanted = float((each[0, :2].mean() + each[1, :1].mean()) / 2)
    assert of("perplexity", told, words, targets).value == pytest.approx(wanted, rel=1e-5)
