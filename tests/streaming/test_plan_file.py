"""The file that says a plan for each block."""

from __future__ import annotations

import json

import pytest

from hwprune.errors import UsageError
from hwprune.streaming.plan_file import read_blocks, write_blocks


def test_what_is_written_is_read(tmp_path):
    blocks = ({"neuron": 0.25}, {}, {"attention": 1.0}, {"layer": 1.0})
    write_blocks(tmp_path / "blocks.json", blocks)
    assert read_blocks(tmp_path / "blocks.json") == blocks


def test_all_faults_at_once(tmp_path):
    blocks = [{"neuron": 1.5}, {"nurons": 0.1}, [], {"attention": 0.5}, {"head": "x"}, {"mlp": True}]
    (tmp_path / "b.json").write_text(json.dumps({"schema": 1, "blocks": blocks}))
    with pytest.raises(UsageError) as caught:
        read_blocks(tmp_path / "b.json")
    told = str(caught.value)
    assert all(f"block {index}:" in told for index in (0, 1, 2, 3, 4)) and "block 5" not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ("[]", "no list of blocks"),
        ('{"schema": 1, "blocks": []}', "no list of blocks"),
        ('{"schema": 2, "blocks": [{}]}', "schema 2"),
        ('{"schema": 1, "blocks": [{"layer": 1}, {"layer": 1}]}', "drops every block"),
    ],
)
def test_files_of_other_forms(tmp_path, text, message):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_blocks(tmp_path / "b.json")
