"""What the dense model gives to compensate with, and what of a candidate needs none."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.compensation import Context
from hwprune.compensation.dense_side import BATCH, clean_nodes, dense_side
from hwprune.structure.torch.analyse import trace
from tests.compensation.helpers import Plain, images


def context_of(model, batches, cache=None):
    graph = trace(model.eval(), tuple(x[:2] for x in batches[0]))
    return graph, Context(graph.module, lambda: batches, graph.matrices, cache={} if cache is None else cache)


def test_targets_are_the_products_of_the_dense_layers():
    torch.manual_seed(0)
    graph, context = context_of(Plain(), [(images(96),)])
    side = dense_side(context)
    assert side.examples == 96
    assert sum(side.held_out) == 1  # 24 of 96 examples, in one batch
    state = dict(graph.module.named_parameters())
    node = next(node for node in graph.module.graph.nodes if node.name in side.layers)
    layer = side.layers[node.name].layer
    weight = state[layer.name].detach().reshape(layer.matrix.groups, -1, state[layer.name][0].numel())
    for inputs, places, wanted in zip(side.batches, side.layers[node.name].places, side.layers[node.name].targets, strict=True):
        columns = layer.columns_at(inputs[0], places)  # the first layer reads the model's input
        assert torch.allclose(columns @ weight.mT, wanted, atol=1e-4)


def test_every_layer_has_targets_of_its_own_shape():
    torch.manual_seed(0)
    _, context = context_of(Plain(), [(images(64),), (images(32, seed=1),)])
    side = dense_side(context)
    assert len(side.layers) == 6
    for kept in side.layers.values():
        groups, out = kept.layer.matrix.groups, kept.layer.matrix.shape[0]
        assert all(
            one.shape == (groups, len(places), out // groups) for one, places in zip(kept.targets, kept.places, strict=True)
        )


def test_the_dense_model_runs_once():
    torch.manual_seed(0)
    calls = []

    def batches():
        calls.append(1)
        return [(images(64),)]

    graph = trace(Plain().eval(), (images(2),))
    context = Context(graph.module, batches, graph.matrices, cache={})
    assert dense_side(context) is dense_side(context)
    assert len(calls) == 1


def test_sorted_examples_are_held_out_at_random():
    """Held-out examples come from everywhere, not from the end of the data."""
    torch.manual_seed(0)
    rising = torch.arange(400.0)[:, None].expand(400, 4).contiguous()
    _, context = context_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), [(rising,)])
    side = dense_side(context)
    held = torch.cat([inputs[0][:, 0] for inputs, flag in zip(side.batches, side.held_out, strict=True) if flag])
    assert len(held) == 100
    assert max(len(inputs[0]) for inputs in side.batches) <= BATCH
    assert 150 < float(held.mean()) < 250


def test_what_comes_before_the_first_change_is_clean():
    torch.manual_seed(0)
    model = Plain().eval()
    graph = trace(model, (images(2),))
    axis = next(a for a in graph.axes if a.role == "channel" and not a.frozen and any(m[0].startswith("join") for m in a.members))
    keep = torch.ones(axis.size, dtype=torch.bool)
    keep[0] = False
    module = graph.cut({axis.name: keep}, ())
    clean = clean_nodes(module, graph.module)
    dirty = [node.name for node in module.graph.nodes if node.op == "call_function" and node.name not in clean]
    names = [node.name for node in module.graph.nodes if node.op == "call_function"]
    behind = {dirty[0]}
    for node in module.graph.nodes:
        behind |= {node.name} if any(source.name in behind for source in node.all_input_nodes) else set()
    assert set(dirty) == behind & set(names)  # everything behind it, nothing before it or beside it
    assert len(dirty) < len(names)
    assert clean_nodes(graph.cut({}, ()), graph.module) >= {node.name for node in graph.module.graph.nodes if node.op != "output"}


def test_much_data_is_read_once_and_only_a_part_of_it_kept(monkeypatch):
    from hwprune.compensation import dense_side as module

    monkeypatch.setattr(module, "MOST_EXAMPLES", 64)
    torch.manual_seed(0)
    read, held = [], []
    real = module._least
    monkeypatch.setattr(module, "_least", lambda given, keys, most: held.append(sum(map(len, keys))) or real(given, keys, most))

    def batches():
        for number in range(100):
            read.append(number)
            yield (images(32, seed=number),)

    graph = trace(Plain().eval(), (images(2),))
    side = dense_side(Context(graph.module, batches, graph.matrices, cache={}))
    assert side.examples == 64
    assert read == list(range(100))
    assert max(held) <= 4 * 64 + 32


def test_a_sample_of_sorted_data_has_all_of_it(monkeypatch):
    """More examples than are wanted, sorted: every part of the data is as likely to be in the sample."""
    monkeypatch.setattr("hwprune.compensation.dense_side.MOST_EXAMPLES", 100)
    torch.manual_seed(0)
    rows = [(torch.full((50, 4), float(number)),) for number in range(40)]
    _, context = context_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), rows)
    side = dense_side(context)
    drawn = torch.cat([inputs[0][:, 0] for inputs in side.batches])
    assert len(drawn) == 100
    assert 15 < float(drawn.mean()) < 24
    assert len(drawn.unique()) > 25


def test_constants_of_any_shape():
    """A product with a bias of shape (1, out), as ONNX's Gemm has it; one that differs from row to row is no constant."""

    class Product(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return torch.relu(torch.addmm(self.bias, x, self.weight)).sum(dim=1, keepdim=True)

    torch.manual_seed(0)
    data = [(torch.randn(8, 4),)]
    for shape, there in (((6,), 1), ((1, 6), 1), ((1,), 1), ((8, 6), 0)):
        model = Product(shape)
        graph = trace(model.eval(), (torch.randn(8, 4),))
        side = dense_side(Context(graph.module, lambda: data, graph.matrices, cache={}))
        assert len(side.layers) == there, shape
        for kept in side.layers.values():
            for inputs, places, wanted in zip(side.batches, kept.places, kept.targets, strict=True):
                assert torch.allclose(inputs[0][places] @ model.weight, wanted[0], atol=1e-5)


def test_moments_of_norms_are_those_of_all_batches_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))
    graph, context = context_of(model, [(images(100),)])
    side = dense_side(context)
    (found,) = side.norms.values()
    with torch.no_grad():
        values = torch.cat([model[0](side.batches[number][0]) for number in side.norm_batches()]).double()
    assert torch.allclose(found[0], values.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(found[1], values.var(dim=(0, 2, 3), unbiased=False), atol=1e-5)
    del graph
