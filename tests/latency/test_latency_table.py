"""The table: micro-measurement in a world of our own, storage, merging, faults."""

from __future__ import annotations

import threading

import pytest
import torch

from hwprune.errors import UsageError
from hwprune.latency import latency_table
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import COLUMNS, FEATURES, Entry, LatencyTable
from hwprune.latency.splitting import split
from hwprune.onnx_files import to_onnx
from hwprune.records import target as targets
from tests.conftest import TinyNet, randomise

IDENTITY = {"device": "a CPU", "runtime": "a runtime 1.0"}


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    import onnx

    folder = tmp_path_factory.mktemp("segments")
    path = to_onnx.to_onnx(randomise(TinyNet()), (torch.randn(1, 1, 8, 8),), folder / "model.onnx")
    return split(onnx.load(str(path)), [(1, 1, 8, 8)])


@pytest.fixture(scope="module")
def filled(segments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    with Bench(targets.load("cpu")) as bench:
        table = LatencyTable(IDENTITY, folder / "t")
        assert table.fill(bench, segments, rounds=3) == len({s.signature for s in segments})
        assert table.fill(bench, segments) == 0  # all known now
    return table


def test_fills_on_the_real_runtime_and_survives_storage(filled, segments):
    assert not filled.errors
    assert filled.reference_s["FLOAT"] > 0
    filled.observe("net", "dense", segments, 1e-3, 1e-5)
    filled.write()
    read = LatencyTable.read(filled.folder, IDENTITY)
    assert set(read.entries) == set(filled.entries)
    for signature, entry in filled.entries.items():
        assert read.entries[signature].seconds == pytest.approx(entry.seconds, rel=1e-4)
        assert read.entries[signature].features == pytest.approx(dict(entry.features))
    assert sum(read.models["net", "dense"].segments.values()) == len(segments)


def test_two_processes_add_to_one_table(filled, tmp_path):
    first, second = LatencyTable.read(filled.folder), LatencyTable.read(filled.folder)
    names = list(first.entries)
    first.folder = second.folder = tmp_path / "shared"
    for name in names[2:]:
        del first.entries[name]
    for name in names[:2]:
        del second.entries[name]
    second.reference_s["FLOAT"] *= 2  # its machine ran at half the speed: its seconds are in another unit
    second.entries = {
        k: type(e)(e.signature, e.anchor, e.family, 2 * e.seconds, e.half_width_s, e.features) for k, e in second.entries.items()
    }
    first.write()
    second.write()
    both = LatencyTable.read(tmp_path / "shared")
    assert set(both.entries) == set(names)
    ratios = {name: both.entries[name].seconds / filled.entries[name].seconds for name in names}
    assert list(ratios.values()) == pytest.approx([ratios[names[0]]] * len(names), rel=1e-3)  # one unit for all


def test_another_identity_is_refused_with_what_differs(filled):
    with pytest.raises(UsageError, match="runtime: 'a runtime 1.0' in the table, 'a runtime 2.0' here"):
        LatencyTable.read(filled.folder, {**IDENTITY, "runtime": "a runtime 2.0"})
    with pytest.raises(UsageError, match="another device"):
        LatencyTable({"device": "x"}).copy_to(filled.folder)


def test_every_fault_of_a_table_is_told(filled, tmp_path):
    filled.copy_to(tmp_path / "t")
    lines = (tmp_path / "t" / "table.csv").read_text().splitlines()
    cells = lines[1].split(",")
    cells[COLUMNS.index("seconds")] = "-1"
    other = lines[2].split(",")
    other[COLUMNS.index("macs")] = "many"
    (tmp_path / "t" / "table.csv").write_text("\n".join([lines[0], ",".join(cells), ",".join(other), "too,few"]) + "\n")
    with pytest.raises(UsageError) as caught:
        LatencyTable.read(tmp_path / "t")
    text = str(caught.value)
    assert "line 2: seconds must be a number > 0, got '-1'" in text
    assert "line 3: macs must be a number >= 0, got 'many'" in text
    assert "line 4: too few cells" in text


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("fingerprint.json", "{}", "not the fingerprint"),
        (
            "fingerprint.json",
            '{"schema": 1, "identity": {"device": "x"}, "reference_s": 0}',
            "reference_s must map types to numbers > 0",
        ),
        ("fingerprint.json", '{"schema": 1, "identity": {}, "reference_s": {"FLOAT": 1}}', "not the fingerprint"),
        ("fingerprint.json", "nonsense", "fingerprint.json"),
        ("table.csv", "a,b\n1,2\n", "lacks the column"),
    ],
)
def test_what_is_no_table(filled, tmp_path, name, content, wanted):
    filled.copy_to(tmp_path / "t")
    (tmp_path / "t" / name).write_text(content)
    with pytest.raises(UsageError, match=wanted):
        LatencyTable.read(tmp_path / "t")
    with pytest.raises(UsageError, match="holds no latency table"):
        LatencyTable.read(tmp_path)


def test_a_piece_that_kills_the_process_costs_only_itself(segments, tmp_path, monkeypatch):
    """One segment's file makes the worker die; the others of its group are still measured."""
    bad = segments[0]
    table = LatencyTable(IDENTITY)
    whole = type(bad).model

    def model(self, seed=0):
        made = whole(self, seed)
        if self.signature == bad.signature:
            made.graph.node[0].op_type = "NoSuchOperator"
        return made

    monkeypatch.setattr(type(bad), "model", model)
    with Bench(targets.load("cpu")) as bench:
        table.fill(bench, segments, rounds=3)
    assert list(table.errors) == [bad.signature]
    assert len(table.entries) == len({s.signature for s in segments}) - 1


def test_runtime_that_can_not_run_the_reference_is_an_error(segments, monkeypatch):
    """Not a table of guesses."""
    from hwprune.errors import RunError
    from hwprune.latency import latency_table as module

    whole = module._write_reference

    def broken(folder, kind):
        whole(folder, kind)
        (folder / "reference.onnx").write_bytes(b"")

    monkeypatch.setattr(module, "_write_reference", broken)
    with Bench(targets.load("cpu")) as bench, pytest.raises(RunError, match="nothing can be timed"):
        LatencyTable(IDENTITY).fill(bench, segments, rounds=3)


def test_damaged_table_is_put_aside_and_not_overwritten(filled, tmp_path):
    made = LatencyTable.stored(tmp_path, filled.identity)
    filled.copy_to(made.folder)
    (made.folder / "table.csv").write_text("nonsense")
    again = LatencyTable.stored(tmp_path, filled.identity)
    assert again.entries == {}
    (aside,) = tmp_path.glob("*-damaged-*")
    assert (aside / "table.csv").read_text() == "nonsense"


def test_whole_models_of_another_hour_are_ratios(filled, segments, tmp_path):
    """The machine was half as fast when the second session measured."""
    one, two = (LatencyTable(IDENTITY, tmp_path / "t", dict(filled.entries), reference_s={"FLOAT": 1e-5}) for _ in range(2))
    one.observe("net", "dense", segments, 1e-3, 0.0)
    one.write()
    two.observe("net", "dense", segments, 2e-3, 0.0)
    two.observe("net", "cut", segments[:2], 1e-3, 0.0)
    two.write()
    both = LatencyTable.read(tmp_path / "t")
    assert both.models["net", "cut"].seconds / both.models["net", "dense"].seconds == pytest.approx(0.5)


def one_entry(folder, seconds):
    """A table whose only segment takes as long as its reference: a reader can tell a mixture of two of them."""
    entry = Entry("a", "Conv", "Conv", seconds, 0.0, dict.fromkeys(FEATURES, 1.0))
    return LatencyTable(IDENTITY, folder, {"a": entry}, reference_s={"FLOAT": seconds})


@pytest.mark.parametrize("store", ["write", "copy_to"])
def test_a_reader_never_sees_half_of_a_write(tmp_path, monkeypatch, store):
    one_entry(tmp_path / "t", 1e-5).write()
    tables = []
    reader = threading.Thread(target=lambda: tables.append(LatencyTable.read(tmp_path / "t")))
    replace = latency_table.write_atomic

    def slow(path, data):
        replace(path, data)
        if path.name == "models.csv":  # table.csv is new, fingerprint.json is old
            reader.start()
            reader.join(0.5)

    monkeypatch.setattr(latency_table, "write_atomic", slow)
    changed = one_entry(tmp_path / "t", 2e-5)
    changed.write() if store == "write" else changed.copy_to(tmp_path / "t")
    reader.join(10)
    (table,) = tables
    assert table.entries["a"].seconds == table.reference_s["FLOAT"] == 2e-5


def test_a_table_that_can_not_be_locked_is_read(tmp_path):
    one_entry(tmp_path / "t", 1e-5).write()
    lock = tmp_path / "t" / ".lock"
    for folder_mode, lock_mode in ((0o500, 0o400), (0o500, 0o000)):
        lock.chmod(lock_mode)
        (tmp_path / "t").chmod(folder_mode)
        try:
            assert LatencyTable.read(tmp_path / "t").entries["a"].seconds == 1e-5
        finally:
            (tmp_path / "t").chmod(0o700)
    lock.unlink()
    assert LatencyTable.read(tmp_path / "t").entries["a"].seconds == 1e-5
    assert not lock.exists()  # reading leaves nothing behind


def test_a_table_that_is_locked_for_the_first_time_while_it_is_read(tmp_path, monkeypatch):
    """It came without a lock file, and its first writer makes one between two files of the reader."""
    one_entry(tmp_path / "t", 1e-5).write()
    (tmp_path / "t" / ".lock").unlink()
    read, turns = latency_table.read_rows, []

    def slow(path, *arguments):
        if not turns:
            turns.append(path)
            one_entry(tmp_path / "t", 2e-5).write()
        return read(path, *arguments)

    monkeypatch.setattr(latency_table, "read_rows", slow)
    table = LatencyTable.read(tmp_path / "t")
    assert table.entries["a"].seconds == table.reference_s["FLOAT"] == 2e-5


def test_the_version_counts_changes_of_the_contents(tmp_path):
    table = one_entry(tmp_path / "t", 1e-5)
    start = table.version
    table.observe("net", "dense", [], 1e-3, 0.0)
    assert table.version > start
    seen = table.version
    table.observe("net", "dense", [], 1e-3, 0.0)  # the same again
    table.write()
    assert table.version == seen
    table.observe("net", "dense", [], 2e-3, 0.0)
    assert table.version > seen
    other = LatencyTable(IDENTITY, tmp_path / "t", reference_s={"FLOAT": 1e-5})
    seen = other.version
    other.write()  # takes over what the first stored
    assert set(other.entries) == {"a"}
    assert other.version > seen
