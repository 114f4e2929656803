"""Fewer tokens in ONNX files: they compute what PyTorch does, whatever the export looks like."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hwprune.onnx_files import OnnxModule
from hwprune.onnx_files.template import Template
from hwprune.structure.onnx.graph import OnnxGraph
from hwprune.structure.torch.analyse import trace
from hwprune.structure.torch.graph import AxisGraph
from tests.structure.token_models import Text, Vision
from tests.structure.torch.test_token_graph import Pairs


def run(model: onnx.ModelProto, inputs: tuple[torch.Tensor, ...]) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {item.name: x.numpy() for item, x in zip(session.get_inputs(), inputs, strict=True)}
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def keep(graph: AxisGraph, **kept: int) -> dict[str, torch.Tensor]:
    names = {f"{axis.form}{axis.place}": axis for axis in graph.token_axes}
    return {names[key].name: torch.arange(names[key].size) < count for key, count in kept.items()}


CHOICES = (
    {"token0": 9}, {"merge0": 9}, {"token0": 12, "token1": 7, "token2": 3}, {"merge0": 13, "merge1": 9, "merge2": 15},
    {"token0": 13, "merge0": 12, "merge2": 8},
)  # fmt: skip


@pytest.fixture(scope="module")
def exported() -> tuple[AxisGraph, Template]:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Vision(class_token=False).eval(), (x,))
    return graph, Template(graph, (x,))


@torch.no_grad()
def test_files_compute_what_the_module_does(exported: tuple[AxisGraph, Template]) -> None:
    x = torch.randn(2, 3, 8, 8)
    graph, template = exported
    heads = {axis.name: torch.tensor([False, True]) for axis in graph.axes if axis.role == "head" and not axis.frozen}
    drop = [graph.branches[3].name]
    for chosen in CHOICES:
        for keeps, gone in ((keep(graph, **chosen), []), ({**heads, **keep(graph, **chosen)}, drop)):
            module = graph.cut(keeps, gone)
            model = template.model(module, keeps, gone)
            assert model is not None, template.tokens
            for batch in (x, torch.randn(5, 3, 8, 8)):
                np.testing.assert_allclose(run(model, (batch,)), module(batch).numpy(), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_masks_go_with_the_tokens_and_the_length_is_fixed() -> None:
    torch.manual_seed(2)
    ids, mask = torch.randint(0, 40, (4, 12)), torch.ones(4, 12, dtype=torch.long)
    mask[1, 5:], mask[2, 9:] = 0, 0
    graph = trace(Text().eval(), (ids, mask))
    template = Template(graph, (ids, mask))
    for chosen in ({"token0": 7}, {"token1": 4}, {"token0": 9, "token1": 6}):
        keeps = keep(graph, **chosen)
        module = graph.cut(keeps)
        model = template.model(module, keeps)
        assert model is not None, template.tokens
        assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [0, 12]
        np.testing.assert_allclose(run(model, (ids, mask)), module(ids, mask).numpy(), rtol=1e-4, atol=1e-5)
    free = template.model(graph.cut({}), {})
    assert free is not None
    assert free.graph.input[0].type.tensor_type.shape.dim[1].dim_param  # as it was, where none go


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [17, 18])
@torch.no_grad()
def test_a_bare_file_of_another_exporter(opset: int, tmp_path: Path) -> None:
    """Read back as an ONNX model: its attention is a softmax between two products, its shapes are computed."""
    torch.manual_seed(3)
    x = torch.randn(2, 3, 8, 8)
    model = Vision(class_token=True).eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (x,), str(path), opset_version=opset, dynamo=False, input_names=["image"], output_names=["scores"],
        dynamic_axes={"image": {0: "n"}},
    )  # fmt: skip
    module = OnnxModule(OnnxGraph(onnx.load(str(path)))).eval()
    graph = trace(module, (x,))
    assert len(graph.token_axes) == 6, graph.token_reason
    template = Template(graph, (x,), module.onnx_graph, module.onnx_initializers)
    for chosen in CHOICES[2:]:
        keeps = keep(graph, **chosen)
        cut = graph.cut(keeps)
        made = template.model(cut, keeps)
        assert made is not None, template.tokens
        np.testing.assert_allclose(run(made, (x,)), cut(x).numpy(), rtol=1e-4, atol=2e-5)
        # What is delivered can be given to hwprune again.
        np.testing.assert_allclose(OnnxModule(OnnxGraph(made)).eval()(x).numpy(), cut(x).numpy(), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_what_the_template_can_not_do_is_exported(
    exported: tuple[AxisGraph, Template], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 3, 8, 8)
    graph, template = exported
    keeps = keep(graph, token0=9, merge1=12)
    module = graph.cut(keeps)
    monkeypatch.setattr(template, "_tokens", "no")
    assert not template.write(module, keeps, tmp_path / "model.onnx")
    np.testing.assert_allclose(run(onnx.load(str(tmp_path / "model.onnx")), (x,)), module(x).numpy(), rtol=1e-4, atol=2e-5)


class Linear(Vision):
    """Features from a linear layer alone: in ONNX its weight is turned before it is read."""

    def __init__(self) -> None:
        super().__init__(class_token=False, blocks=1)
        self.into = torch.nn.Linear(7, 16)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.into(x)
        return y


@torch.no_grad()
def test_turned_weights_half_precision_and_ties() -> None:
    torch.manual_seed(6)
    x = torch.randn(2, 9, 7)
    x[1] = x[1, :1]  # all tokens alike: the first ones stay
    graph = trace(Linear().eval(), (x,))
    template = Template(graph, (x,))
    for chosen in ({"token0": 4}, {"merge0": 6}):
        keeps = keep(graph, **chosen)
        made = template.model(graph.cut(keeps), keeps)
        assert made is not None, template.tokens
        np.testing.assert_allclose(run(made, (x,)), graph.cut(keeps)(x).numpy(), rtol=1e-4, atol=2e-5)
    graph = trace(Linear().eval().half(), (x.half(),))
    template = Template(graph, (x.half(),))
    keeps = keep(graph, merge0=6)
    made = template.model(graph.cut(keeps), keeps)
    assert made is not None
    np.testing.assert_allclose(run(made, (x.half(),)), graph.cut(keeps)(x.half()).numpy(), rtol=0.05, atol=0.02)


@torch.no_grad()
def test_padding_that_sees_nothing_in_the_file() -> None:
    torch.manual_seed(7)
    ids, mask = torch.randint(0, 40, (4, 12)), torch.ones(4, 12, dtype=torch.long)
    mask[1, :5], mask[2, :7] = 0, 0
    graph = trace(Pairs().eval(), (ids, mask))
    template = Template(graph, (ids, mask))
    keeps = keep(graph, token0=7)
    module = graph.cut(keeps)
    model = template.model(module, keeps)
    assert model is not None, template.tokens
    np.testing.assert_allclose(run(model, (ids, mask)), module(ids, mask).numpy(), rtol=1e-4, atol=1e-5)
