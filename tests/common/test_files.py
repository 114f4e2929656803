"""Typed files: every fault at once, whole files or none."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.common import files
from hwprune.common.files import dump_toml, read_json, read_toml, write_atomic
from hwprune.errors import UsageError


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


def test_of_a_full_disk_the_file_is_named(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        write_atomic(tmp_path / "a.json", "text")
    assert raised.value.filename == str(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_where_the_cache_can_not_be_written_another_folder_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.cache_folder() == tmp_path / "cache" / "hwprune"
    monkeypatch.setattr(files.os, "access", lambda path, _mode: not str(path).startswith(str(tmp_path)))
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    other = files.cache_folder()
    assert other.parent == tmp_path and other.name.startswith("hwprune-")
    assert other.stat().st_mode & 0o077 == 0  # nobody else writes what is loaded from there
    assert files.cache_folder() == other
    monkeypatch.setattr(files.os, "getuid", lambda: -1)  # it is somebody else's
    assert files.cache_folder() == tmp_path / "cache" / "hwprune"
