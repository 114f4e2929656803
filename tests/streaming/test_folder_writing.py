"""Writing the folder."""

from __future__ import annotations

import pytest

from hwprune.errors import UsageError
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.folder_writing import write_folder
from hwprune.streaming.sweep import Sweep
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import windows


def sweep_of(folder, words, tmp_path, plan):
    sweep = Sweep(LanguageFolder(folder), windows(folder, words, 16)[:4], plan, tmp_path / "work")
    return sweep, sweep.run()


def test_the_tokenizer_comes_along_and_small_memory_loads_nothing_as_a_whole(tmp_path, folder, words):
    sweep, done = sweep_of(folder, words, tmp_path, SweepPlan([("neuron", 0.5)], "l2", "none"))
    assert write_folder(sweep, done, tmp_path / "out", memory=1000) is False
    assert windows(tmp_path / "out", words, 16).equal(windows(folder, words, 16))
    assert write_folder(sweep, done, tmp_path / "again") is True


def test_blocks_of_different_sizes_are_refused_with_the_number(tmp_path, folder, words):
    sweep, done = sweep_of(folder, words, tmp_path, SweepPlan([("neuron", 0.5)], "l2", "none", ("model.layers.1.*",)))
    with pytest.raises(UsageError, match="intermediate_size would have to be 24 and 48"):
        write_folder(sweep, done, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
