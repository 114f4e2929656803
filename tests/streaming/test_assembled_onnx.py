"""ONNX files put together from blocks: they compute what PyTorch computes, with blocks of all kinds in any order."""

from __future__ import annotations

import onnx
import pytest
import torch

from hwprune.errors import RunError
from hwprune.streaming import assembled_onnx, road
from hwprune.streaming.assembled_onnx import Assembler, blocks_of, write_assembled
from hwprune.streaming.block_templates import NotAssembledError
from hwprune.streaming.blocks import entering
from hwprune.streaming.cached_onnx import check_cached_onnx
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.streaming.uneven import known_lengths
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import llama, whole

IDS = (torch.arange(24)[None] * 7) % 60


@pytest.mark.parametrize(
    "kind", ["Llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Qwen3", "Phi3", "Mistral", "Granite", "Olmo2"))]
)
def test_a_folder_computes_the_same(tmp_path, kind):
    folder = llama(tmp_path / "model", depth=3, kind=kind)
    shape = write_assembled(LanguageFolder(folder), tmp_path / "model.onnx")
    model = whole(folder)
    check_cached_onnx(tmp_path / "model.onnx", model, shape, IDS)
    model.model.layers[1].mlp.down_proj.weight.data[:16] *= 1.5
    with pytest.raises(RunError):  # the check is no empty one
        check_cached_onnx(tmp_path / "model.onnx", model, shape, IDS)


def test_one_export_serves_blocks_of_all_kinds_in_any_order(tmp_path, words):
    folder = llama(tmp_path / "dense", depth=5)
    plan = SweepPlan(
        (), "l2", "none", by_block=({"attention": 1}, {"neuron": 0.5, "head": 0.5}, {"mlp": 1}, {"neuron": 0.25}, {"layer": 1})
    )
    data = TextData(words, length=16, most=8, judged=4)
    road.prune_folder(folder, data, plan, tmp_path / "out")
    uneven, dense = LanguageFolder(tmp_path / "out"), LanguageFolder(folder)
    blocks = blocks_of(uneven)
    hidden, given = entering(dense.ends(), dense.blocks, IDS)
    kinds = [{name: tuple(x.shape) for name, x in block.items()} for block in blocks]
    assembler = Assembler(dense, kinds, known_lengths(dense, given, hidden))
    shape = assembler.write(blocks, tmp_path / "one.onnx")
    check_cached_onnx(tmp_path / "one.onnx", uneven.whole(), shape, IDS)
    shape = assembler.write([*blocks_of(dense)[:1], *blocks[::-1]], tmp_path / "two.onnx")
    assert shape.heads == (2, 2, 2, 2, 2, 2, 1, 1)
    proto = onnx.load(tmp_path / "two.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert not any("hwprune_mark" in name for node in proto.graph.node for name in node.input)
    sizes = {item.name: tuple(item.dims) for item in proto.graph.initializer}
    assert sizes["block.1.mlp.down_proj.weight.transposed"] == (36, 32)
    with pytest.raises(NotAssembledError, match="other sizes"):
        assembler.write([{name: x for name, x in blocks_of(dense)[0].items() if "o_proj" not in name}], tmp_path / "three.onnx")


def test_zeros_that_stand_for_a_branch_are_left_out(tmp_path, folder, words):
    plan = SweepPlan([("attention", 0.34)], "l2", "none")
    road.prune_folder(folder, TextData(words, length=16, most=8, judged=4), plan, tmp_path / "out")
    out = LanguageFolder(tmp_path / "out")
    assert not out.uneven
    shape = write_assembled(out, tmp_path / "model.onnx")
    assert len(shape.heads) == 4
    check_cached_onnx(tmp_path / "model.onnx", whole(tmp_path / "out"), shape, IDS)


def gemma(place):
    return llama(place, depth=2, kind="Gemma", head_dim=8)


def test_what_the_exporter_folds_is_found_out(tmp_path):
    """Gemma's norms multiply by 1 + weight."""
    with pytest.raises(NotAssembledError, match="input_layernorm"):
        write_assembled(LanguageFolder(gemma(tmp_path / "gemma")), tmp_path / "model.onnx")


@pytest.mark.slow
def test_what_does_not_come_apart_is_exported_whole(tmp_path, words):
    data = TextData(words, length=16, most=8, judged=4)
    plan = SweepPlan([("neuron", 0.5)], "l2", "none")
    road.prune_folder(gemma(tmp_path / "gemma"), data, plan, tmp_path / "out", onnx=True)
    assert (tmp_path / "out" / "onnx" / "model.onnx").is_file()


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_exported_whole(tmp_path, folder, words, monkeypatch):
    real = assembled_onnx.blocks_of
    monkeypatch.setattr(assembled_onnx, "blocks_of", lambda source: real(source)[::-1])
    data = TextData(words, length=16, most=8, judged=4)
    road.prune_folder(folder, data, SweepPlan([("neuron", 0.5)], "l2", "none"), tmp_path / "out", onnx=True)
    names = {item.name for item in onnx.load(tmp_path / "out" / "onnx" / "model.onnx").graph.initializer}
    assert not any(name.startswith("block.") for name in names)
