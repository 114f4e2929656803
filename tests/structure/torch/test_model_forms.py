"""Models as people bring them: exported, compiled, parallel, by keyword; and advice that fits where nothing can be done."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import TraceError, UsageError
from hwprune.structure.torch.analyse import trace
from hwprune.structure.torch.model_forms import settled


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.drop = plain(), nn.Dropout(0.5)

    def forward(self, *, x, scale):
        return self.drop(self.body(x)) * scale


X, SCALE = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), torch.full((3, 1), 2.0)
FREE = ({0: torch.export.Dim("batch")},)


def exported():
    return torch.export.export(plain(), (X,), dynamic_shapes=FREE)


FORMS = {
    "exported program": (exported, (X,)),
    "its module": (lambda: exported().module(), (X,)),
    "exported at one batch": (lambda: torch.export.export(plain(), (X,)).module(), (X,)),
    "compiled": (lambda: torch.compile(plain()), (X,)),
    "parallel": (lambda: nn.DataParallel(plain()), (X,)),
    "one tensor": (plain, X),
    "by keyword": (ByName, {"x": X, "scale": SCALE}),
    "by keyword, in order": (ByName, (X, SCALE)),
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_traced_pruned_and_exported(form, tmp_path):
    make, inputs = FORMS[form]
    model = make()
    given = tuple(inputs.values()) if isinstance(inputs, dict) else (inputs,) if isinstance(inputs, torch.Tensor) else inputs
    graph = hwprune.trace(model, inputs)
    assert sum(axis.frozen is None for axis in graph.axes) == 1
    batches = [(given, None)] * 2
    workload = hwprune.Workload("w", model, inputs, batches, batches, metric="agreement")
    wanted = plain()(X) * (SCALE if "keyword" in form else 1)
    workload.model.eval()
    assert torch.allclose(workload.model(*workload.example_inputs), wanted, atol=1e-6)
    pruner = hwprune.Pruner(workload)
    candidate = pruner.prune(hwprune.uniform_recipe(pruner, "neuron", 0.5))
    candidate.export(tmp_path / "out")
    assert sum(p.numel() for p in candidate.module.parameters()) < sum(p.numel() for p in plain().parameters())


def test_a_model_by_keyword_follows_train_and_keeps_its_names():
    model = ByName()
    workload = hwprune.Workload("w", model, (X, SCALE), [((X, SCALE), None)], [((X, SCALE), None)], metric="agreement")
    assert set(workload.model.state_dict()) == set(model.state_dict())
    workload.model.train()
    assert model.training
    assert model.drop.training
    workload.model.eval()
    assert not model.training
    assert not model.drop.training


@torch.no_grad()
def test_a_transformer_with_its_own_causal_mask():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Transformer(32, 4, 1, 1, 48, batch_first=True), nn.Linear(32, 9)

        def forward(self, source, target):
            mask = nn.Transformer.generate_square_subsequent_mask(5)
            return self.head(self.body(source, target, tgt_mask=mask))

    torch.manual_seed(0)
    model = Translator().eval()
    inputs = torch.randn(2, 7, 32), torch.randn(2, 5, 32)
    graph = hwprune.trace(model, inputs)
    assert torch.allclose(graph.module(*inputs), model(*inputs), atol=1e-5)
    free = {member for axis in graph.axes if axis.frozen is None for member in axis.members}
    assert ("body.encoder.layers.0.linear1.weight", 0) in free
    assert ("body.decoder.layers.0.linear1.weight", 0) in free


def quantisation_aware():
    import torch.ao.quantization as quantization

    model = plain().train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "inputs", "says"),
    [
        (lambda: torch.jit.trace(plain(), X), (X,), "bring the nn.Module it was made from"),
        (quantisation_aware, (X,), "before that"),
        (lambda: nn.Sequential(OrderedDict(code=nn.Linear(8, 16), last=nn.Linear(16, 2))), (X,), "a layer called code"),
        (plain, (X, X), r"Its forward takes \(input\), and example_inputs has 2 tensors"),
    ],
    ids=["TorchScript", "quantisation-aware", "a reserved name", "too many inputs"],
)
def test_advice_that_fits(make, inputs, says):
    with pytest.raises(TraceError, match=says):
        hwprune.trace(make(), inputs)


def test_a_uniform_recipe_says_why_nothing_can_be_cut():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain()

        def forward(self, x):
            return self.body(x * 2 if x.sum() > 0 else x)

    batches = [((X,), None)]
    pruner = hwprune.Pruner(hwprune.Workload("w", Branching(), (X,), batches, batches, metric="agreement"))
    with pytest.raises(
        UsageError, match="takes pattern neuron: torch.export can't trace Branching: its forward takes a Python branch"
    ):
        hwprune.uniform_recipe(pruner, "neuron", 0.5)


def test_batches_by_name_reach_a_model_by_keyword_in_any_order():
    batches = [{"scale": SCALE, "x": X}] * 2
    workload = hwprune.Workload("w", ByName(), {"x": X, "scale": SCALE}, batches, batches, metric="agreement")
    inputs, _ = next(workload.batches("validation"))
    assert inputs[0] is X
    assert inputs[1] is SCALE


class Caching(nn.Module):
    """Hands back its keys unless it is told not to, as language models do."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x, mask=None, use_cache=None):
        hidden = torch.relu(self.first(x))
        hidden = hidden if mask is None else hidden * mask
        out = self.last(hidden)
        return (out, hidden) if self.config.use_cache and use_cache is not False else out


@pytest.mark.parametrize("inputs", [(torch.randn(2, 6),), {"x": torch.randn(2, 6)}], ids=["by position", "by name"])
def test_a_cache_is_no_output(inputs):
    model = Caching().eval()
    found = trace(*settled(model, inputs))
    assert [(axis.role, axis.size) for axis in found.axes if axis.frozen is None] == [("neuron", 16)]
    assert model.config.use_cache and isinstance(model(torch.randn(2, 6)), tuple)  # the user's model is as it was
