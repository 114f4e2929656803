"""Writing the folder."""

from __future__ import annotations

import pytest
import torch

from hwprune.errors import UsageError
from hwprune.streaming import folder_writing, road
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.folder_writing import write_folder
from hwprune.streaming.sweep import Sweep
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData, windows
from tests.streaming.helpers import whole


def sweep_of(folder, words, tmp_path, plan):
    sweep = Sweep(LanguageFolder(folder), windows(folder, words, 16)[:4], plan, tmp_path / "work")
    return sweep, sweep.run()


def test_the_tokenizer_comes_along_and_small_memory_loads_nothing_as_a_whole(tmp_path, folder, words):
    sweep, done = sweep_of(folder, words, tmp_path, SweepPlan([("neuron", 0.5)], "l2", "none"))
    assert write_folder(sweep, done, tmp_path / "out", memory=1000) is False
    assert windows(tmp_path / "out", words, 16).equal(windows(folder, words, 16))
    assert write_folder(sweep, done, tmp_path / "again") is True


def test_a_new_width_beside_different_sizes_is_refused_with_the_number(tmp_path, folder, words):
    sweep, done = sweep_of(
        folder, words, tmp_path, SweepPlan([("hidden", 0.25), ("neuron", 0.5)], "l2", "none", ("model.layers.1.*",))
    )
    with pytest.raises(UsageError, match="intermediate_size would have to be 24 and 48"):
        write_folder(sweep, done, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_weights_lie_in_few_files_of_a_bounded_size(tmp_path, folder, words, monkeypatch):
    """A file a block would be hundreds of them; one for all would need all in memory."""
    data = TextData(words, length=16, most=8, judged=4)
    names = {}
    for limit in (10**9, 20_000):
        monkeypatch.setattr(folder_writing, "SHARD", limit)
        out = tmp_path / str(limit)
        road.prune_folder(folder, data, SweepPlan([("neuron", 0.25)], "l2", "none"), out)
        names[limit] = sorted(path.name for path in out.glob("*.safetensors"))
        assert not list(out.glob("*.partial"))
    assert names[10**9] == ["model-00001-of-00001.safetensors"]
    assert len(names[20_000]) == 4 and names[20_000][-1] == "model-00004-of-00004.safetensors"
    whole_one, divided = (whole(tmp_path / str(limit)).state_dict() for limit in names)
    assert all(torch.equal(whole_one[name], divided[name]) for name in whole_one)
