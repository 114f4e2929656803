"""Inputs with a trait that people report in public trackers, each with the value that is right (make cases).

    python benchmarks/cases.py [--only KIND ...]

Kinds are those of faults that were there once; every kind has variations, so that the kind is gone and not the one input. What is
right is computed beside hwprune: by NumPy, by ONNX Runtime on the user's own file, or it is the word for what must happen.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from common import ROOT, heading
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hwprune
from hwprune.cli.main import main as command
from hwprune.deploy import normalising
from hwprune.errors import HwpruneError
from hwprune.pruning.pruner import Pruner
from hwprune.workload import data_checks, loading, scoring
from hwprune.workload.workload import all_tensors

sys.path.insert(0, str(ROOT))

Row = tuple[str, str, str]
"""(variation, right, got)"""
KINDS: dict[str, Callable[[Path], Iterator[Row]]] = {}
N, VALUE = helper.make_node, helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT
SAME = "the same outputs"


def kind(name: str) -> Callable[[Callable[[Path], Iterator[Row]]], Callable[[Path], Iterator[Row]]]:
    def enter(function: Callable[[Path], Iterator[Row]]) -> Callable[[Path], Iterator[Row]]:
        KINDS[name] = function
        return function

    return enter


def told(function: Callable[[], Any]) -> str:
    """What a function gives, or what it says when it refuses."""
    try:
        return str(function())
    except HwpruneError as error:
        return "refused: " + " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 - a traceback is a finding
        return f"TRACEBACK {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def says(words: str, got: str) -> str:
    """``words`` where they are in what was said, so that a row compares equal; else all of it."""
    return f"refused: ... {words} ..." if got.startswith("refused: ") and words in got else got


def same(got: Any, wanted: Any, limit: float = 1e-4) -> str:
    a, b = (np.asarray(x, dtype=np.float64) for x in (got, wanted))
    if a.shape != b.shape:
        return f"shapes {a.shape} and {b.shape}"
    off = float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-2)
    return SAME if off <= limit else f"off by {off:.2g}"


def run_file(path: Path | onnx.ModelProto, **inputs: Any) -> list[np.ndarray[Any, Any]]:
    given = path.SerializeToString() if isinstance(path, onnx.ModelProto) else str(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(given, options)
    names = [item.name for item in session.get_inputs()]
    return session.run(None, dict(zip(names, (np.asarray(x) for x in inputs.values()), strict=True)))  # type: ignore[no-any-return]


def body(classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)
    ).eval()  # fmt: skip


IMAGES = torch.randn(120, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def workload(model: nn.Module, x: torch.Tensor = IMAGES, y: Any = None, **more: Any) -> hwprune.Workload:
    batches = [((x[i : i + 40],), None if y is None else y[i : i + 40]) for i in range(0, len(x), 40)]
    return hwprune.Workload(
        "case", model, (x[:1],), batches[:1], batches, **{"metric": "agreement" if y is None else "top1", **more}
    )


def score(model: nn.Module, worse: nn.Module, work: hwprune.Workload) -> str:
    """The metric of ``worse``, with three digits."""
    data_checks.check_batches(work, model.eval())
    with torch.no_grad():
        read = list(work.batches("validation"))
        outputs = [all_tensors(worse.eval()(*inputs)) for inputs, _ in read]
        dense = [all_tensors(model(*inputs)) for inputs, _ in read]
    return f"{scoring.score(work.scoring, outputs, [t for _, t in read], dense).value:.3f}"


def stored(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any], opset: int = 17) -> Path:
    draw = np.random.default_rng(0)
    arrays = {
        name: (draw.standard_normal(value) * 0.3).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        for name, value in weights.items()
    }
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.metadata_props.add(key="names", value="cat,dog")
    model.doc_string = "made by hand"
    onnx.save(model, str(path))
    return path


def halved(work: hwprune.Workload, pattern: str, folder: Path) -> tuple[Any, Path]:
    """(candidate at half of every unit, its ONNX file)"""
    pruner = Pruner(work)
    candidate = pruner.prune(hwprune.uniform_recipe(pruner, pattern, 0.5))
    candidate.export(folder)
    return candidate, folder / "model.onnx"


# -- the kinds -------------------------------------------------------------------------------


@kind("a tensor called like an operator")
def names(folder: Path) -> Iterator[Row]:
    for name in ("mean", "relu", "linear", "conv2d", "flatten", "add", "mul", "weight", "input", "output", "val_0", "_"):
        for learned in (False, True):

            class Named(nn.Module):
                def __init__(self, name: str = name, learned: bool = learned) -> None:
                    super().__init__()
                    value = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
                    if learned:
                        self.register_parameter(name, nn.Parameter(value))
                    else:
                        self.register_buffer(name, value)
                    self.body, self.name = body(), name

                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    return self.body(x - getattr(self, self.name))  # type: ignore[no-any-return]

            made = Named()

            def check(model: nn.Module = made, place: str = f"{name}{learned}") -> str:
                candidate, path = halved(workload(model), "channel", folder / place)
                with torch.no_grad():
                    return same(run_file(path, x=IMAGES[:5])[0], candidate.module(IMAGES[:5]).numpy())

            yield f"{'parameter' if learned else 'buffer'} {name}", SAME, told(check)


@kind("one output column")
def columns(_: Path) -> Iterator[Row]:
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    good, bad = nn.Linear(8, 1), nn.Linear(8, 1)
    with torch.no_grad():
        scores, other = good(x)[:, 0].numpy(), bad(x)[:, 0].numpy()
    truth = (scores + np.random.default_rng(0).standard_normal(120) * 0.3 > 0).astype(int)
    by_labels = f"{((other > 0).astype(int) == truth).mean():.3f}"
    by_dense = f"{((other > 0) == (scores > 0)).mean():.3f}"
    for shape in ("(N, 1)", "(N,)"):
        for end in ("logits", "probabilities"):
            tail = [nn.Sigmoid()] * (end == "probabilities") + [nn.Flatten(0)] * (shape == "(N,)")
            dense, worse = nn.Sequential(good, *tail), nn.Sequential(bad, *tail)
            for form, labels in (("0/1", torch.from_numpy(truth)), ("0.0/1.0 (N, 1)", torch.from_numpy(truth).float()[:, None])):
                work = workload(dense, x, labels)
                yield f"{end} {shape}, labels {form}", by_labels, told(lambda d=dense, w=worse, k=work: score(d, w, k))
            work = workload(dense, x)
            yield f"{end} {shape}, agreement", by_dense, told(lambda d=dense, w=worse, k=work: score(d, w, k))

    class Price(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 20 + 8 * self.layer(x)  # type: ignore[no-any-return]

    wanted = f"{np.maximum(0, 1 - (scores - other) ** 2 / scores.var()).mean():.3f}"
    soft = Price(good), Price(bad)
    work = workload(soft[0], x)
    yield "a regression, agreement", wanted, told(lambda: score(*soft, work))


@kind("classes along another dim")
def axes(_: Path) -> Iterator[Row]:
    draw = np.random.default_rng(0)

    class Table(nn.Module):
        def __init__(self, values: np.ndarray[Any, Any]) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.from_numpy(values))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.values[x[:, 0].long()]

    x = torch.arange(120)[:, None].float()
    for text, shape, axis in (
        ("(N, T, C)", (120, 7, 5), 2), ("(N, C, T)", (120, 5, 7), 1), ("(N, H, W, C)", (120, 3, 4, 6), 3), ("(N, C, H, W)", (120, 6, 3, 4), 1),
        ("(N, H, C, W)", (120, 3, 6, 4), 2), ("(N, T, C), C = T", (120, 5, 5), 2), ("(N, C, T), C = T", (120, 5, 5), 1),
    ):  # fmt: skip
        dense, worse = draw.standard_normal(shape), draw.standard_normal(shape)
        worse = dense + worse
        labels = torch.from_numpy((dense + 0.2 * draw.standard_normal(shape)).argmax(axis))
        wanted = f"{(worse.argmax(axis) == labels.numpy()).mean():.3f}"
        square = "=" in text
        said = {"class_axis": axis} if square else {}
        work = workload(Table(dense), x, labels, **said)
        yield (
            f"{text}, labels{', said' if square else ''}",
            wanted,
            told(lambda d=dense, w=worse, k=work: score(Table(d), Table(w), k)),
        )
        plain = workload(Table(dense), x)
        got = told(lambda d=dense, w=worse, k=plain: score(Table(d), Table(w), k))
        yield f"{text}, no labels", "refused: ... class_axis ...", says("class_axis", got)
        named = workload(Table(dense), x, class_axis=axis - len(shape))
        wanted = f"{(worse.argmax(axis) == dense.argmax(axis)).mean():.3f}"
        got = told(lambda d=dense, w=worse, k=named: score(Table(d), Table(w), k))
        yield f"{text}, no labels, class_axis={axis - len(shape)}", wanted, got


@kind("several outputs")
def several(_: Path) -> Iterator[Row]:
    class Several(nn.Module):
        def __init__(self, form: str, seed: int) -> None:
            super().__init__()
            self.form, self.body = form, body()
            torch.manual_seed(seed)
            self.boxes = nn.Linear(16, 6)
            if seed:
                with torch.no_grad():
                    self.body[6].weight.add_(torch.randn(4, 16) * 0.2)

        def forward(self, x: torch.Tensor) -> Any:
            feature = self.body[:6](x)
            answer, boxes = self.body[6](feature), self.boxes(feature).view(-1, 2, 3)
            loss = answer.square().mean()
            return {
                "loss first": (loss, answer), "mapping with loss": {"loss": loss, "logits": answer}, "boxes after": (answer, boxes),
                "boxes before": (boxes, answer), "nested": [answer, [boxes]], "with a number": (answer, 7), "with none": (answer, None),
                "with a text": {"logits": answer, "name": "x"},
            }[self.form]  # fmt: skip

    with torch.no_grad():
        labels = body()(IMAGES).argmax(1)
        worse = Several("loss first", 1)(IMAGES)[1].argmax(1)
    wanted = f"{(worse == labels).float().mean():.3f}"
    for form in (
        "loss first", "mapping with loss", "boxes after", "boxes before", "nested", "with a number", "with none", "with a text",
    ):  # fmt: skip
        dense, other = Several(form, 0), Several(form, 1)
        yield f"{form}, labels", wanted, told(lambda d=dense, o=other: score(d, o, workload(d, IMAGES, labels)))


@kind("arrays of an .npz")
def arrays(folder: Path) -> Iterator[Row]:
    path = folder / "float.onnx"
    torch.onnx.export(
        body(), (IMAGES[:2],), str(path), dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=({0: torch.export.Dim("n")},)
    )  # fmt: skip
    ids = stored(
        folder / "ids.onnx", [N("Gather", ["e", "ids"], ["h"]), N("ReduceMean", ["h"], ["m"], axes=[1], keepdims=0), N("MatMul", ["m", "w"], ["y"])],
        [VALUE("ids", TensorProto.INT64, ["n", 5])], [VALUE("y", FLOAT, ["n", 3])], {"e": (20, 16), "w": (16, 3)},
    )  # fmt: skip
    labels = np.arange(120) % 4
    real = IMAGES.numpy()
    inside = "read as float32"
    for name, file, x, y, wanted in (
        ("float64", path, real.astype(np.float64), labels, inside), ("float16", path, real.astype(np.float16), labels, inside),
        ("big-endian", path, real.astype(">f4"), labels, inside), ("uint8 pixels", path, (real * 9).astype(np.uint8), labels, "scaled"),
        ("int32 ids", ids, np.ones((40, 5), np.int32), labels[:40] % 3, "read as int64"),
        ("float ids, whole", ids, np.ones((40, 5), np.float32), labels[:40] % 3, "read as int64"),
        ("float ids, broken", ids, np.full((40, 5), 1.5, np.float32), labels[:40] % 3, "converting would change values"),
        ("uint16 labels", path, real, labels.astype(np.uint16), inside), ("(N, 1) labels", path, real, labels[:, None], inside),
        ("texts as labels", path, real, labels.astype(str), "numbers of the classes"), ("NHWC", path, real.transpose(0, 2, 3, 1), labels, "of shape"),
        ("flat", path, real.reshape(120, -1), labels, "of shape"), ("wrong size", path, real[..., :7], labels, "of shape"),
    ):  # fmt: skip
        data = folder / f"{name.replace(' ', '-')}.npz"
        np.savez(data, **{"ids" if file is ids else "x": x, "targets": y})

        def read(file: Path = file, data: Path = data) -> str:
            inputs, _ = next(loading.load(f"{file} data={data} metric=top1").batches("validation"))
            return f"read as {str(inputs[0].dtype).removeprefix('torch.')}"

        got = told(read)
        yield (
            name,
            wanted if wanted.startswith("read") else f"refused: ... {wanted} ...",
            got if got.startswith("read") else says(wanted, got),
        )


@kind("traits of ONNX files")
def traits(folder: Path) -> Iterator[Row]:
    draw = np.random.default_rng(5)

    def net(batch: Any, opset: int = 17, scale: float = 1.0, dtype: Any = np.float32) -> dict[str, Any]:
        flat = [1, -1] if batch == 1 else [8, -1] if batch == 8 else [0, -1]
        weights = {
            "k": draw.standard_normal((16, 3, 3, 3)),
            "l": draw.standard_normal((16, 16, 3, 3)),
            "w": draw.standard_normal((16, 4)) * scale,
        }
        made = {name: (value * (0.2 if name != "w" else 1)).astype(dtype) for name, value in weights.items()}
        nodes = [
            N("Conv", ["x", "k"], ["a"]), N("Relu", ["a"], ["b"]), N("Conv", ["b", "l"], ["c"]), N("Relu", ["c"], ["d"]),
            N("GlobalAveragePool", ["d"], ["p"]), N("Reshape", ["p", "s"], ["f"]), N("MatMul", ["f", "w"], ["y"]),
        ]  # fmt: skip
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return {
            "nodes": nodes, "inputs": [VALUE("x", element, [batch, 3, 10, 10])], "outputs": [VALUE("y", element, [batch, 4])],
            "weights": {**made, "s": np.array(flat, np.int64)}, "opset": opset,
        }  # fmt: skip

    for name, options in {
        "batch fixed to 1": {"batch": 1}, "batch fixed to 8": {"batch": 8}, "free batch": {"batch": "n"}, "fp16": {"batch": "n", "dtype": np.float16},
        "outputs near zero": {"batch": "n", "scale": 1e-6}, "opset 7": {"batch": "n", "opset": 7}, "opset 9": {"batch": "n", "opset": 9},
        "opset 11": {"batch": "n", "opset": 11}, "opset 12": {"batch": "n", "opset": 12}, "opset 21": {"batch": "n", "opset": 21},
    }.items():  # fmt: skip
        path = stored(folder / f"{name.replace(' ', '-')}.onnx", **net(**options))
        data = folder / "images.npz"
        np.savez(data, x=IMAGES.numpy())

        def check(path: Path = path, data: Path = data, options: dict[str, Any] = options) -> str:
            work = loading.load(f"{path} data={data}")
            candidate, made = halved(work, "channel", folder / path.stem)
            x = IMAGES[: 8 if options["batch"] == 8 else 1]
            x = x.half() if options.get("dtype") is np.float16 else x
            with torch.no_grad():
                wanted = candidate.module(x).float().numpy()
            close = same(np.asarray(run_file(made, x=x)[0], np.float32), wanted, 2e-2 if "dtype" in options else 1e-4)
            kept = onnx.load(str(made))
            notes = {item.key: item.value for item in kept.metadata_props}
            return close + (
                ", its notes" if notes.get("names") == "cat,dog" and kept.doc_string == "made by hand" else ", notes LOST"
            )

        yield name, f"{SAME}, its notes", told(check)


@kind("loaders that change")
def loaders(folder: Path) -> Iterator[Row]:
    model = body()
    with torch.no_grad():
        labels = model(IMAGES).argmax(1)
    plain = TensorDataset(IMAGES, labels)

    class Augmented(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(IMAGES)

        def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
            return IMAGES[place] + 0.05 * torch.randn(3, 10, 10), labels[place]

    class Named(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(IMAGES)

        def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
            return {"pixel_values": IMAGES[place], "labels": labels[place]}

    fixed = [(IMAGES[:40], labels[:40])]
    for name, loader in {
        "shuffled": DataLoader(plain, 40, shuffle=True), "augmented": DataLoader(Augmented(), 40),
        "both": DataLoader(Augmented(), 40, shuffle=True), "last batch shorter": DataLoader(plain, 50), "mappings": DataLoader(Named(), 40),
    }.items():  # fmt: skip
        work = hwprune.Workload("case", model, (IMAGES[:1],), fixed, loader)
        place = folder / name.replace(" ", "-")

        def search(work: hwprune.Workload = work, place: Path = place) -> str:
            result = hwprune.search(work, trials=1, out=place, seed=0)
            return f"{sum(trial.state == 'measured' for trial in result.trials)} of 1 measured"

        yield name, "1 of 1 measured", told(search)


@kind("paths")
def paths(folder: Path) -> Iterator[Row]:
    for name in ("with space", "why?", "100%", "no#1", "it's", 'a "quote"', "ü", "a;b", "$HOME", "-dash", "a:b"):
        place = folder / name
        place.mkdir()
        model = stored(
            place / "m.onnx", [N("MatMul", ["x", "w1"], ["a"]), N("Relu", ["a"], ["r"]), N("MatMul", ["r", "w2"], ["y"])],
            [VALUE("x", FLOAT, ["n", 8])], [VALUE("y", FLOAT, ["n", 3])], {"w1": (8, 32), "w2": (32, 3)},
        )  # fmt: skip
        np.savez(place / "d.npz", x=np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32))
        words = ["search", str(model), "--data", str(place / "d.npz"), "--trials", "1", "--out", str(place / "run"), "--quiet"]

        def search(words: list[str] = words, place: Path = place) -> str:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told_there:
                code = command([word for word in words if word != "--quiet"])
            inside = sorted(path.name for path in place.iterdir())
            if inside != ["d.npz", "m.onnx", "run"]:
                return f"files beside the run: {inside}"
            empty = "the front is empty" in told_there.getvalue()
            return "searched" if code == 0 or empty else f"exit {code}: {told_there.getvalue()[-160:]}"

        yield name, "searched", told(search)


@kind("Gemm in INT8")
def gemms(folder: Path) -> Iterator[Row]:
    for name, options in {
        "plain": {}, "alpha 0.5": {"alpha": 0.5}, "beta 2": {"beta": 2.0}, "alpha 3, beta 0.25": {"alpha": 3.0, "beta": 0.25}, "transposed": {"transB": 1},
        "one weight in two layouts": {"shared": True}, "one weight, one layout": {"shared": True, "again": 0},
    }.items():  # fmt: skip
        given = {key: value for key, value in options.items() if key not in ("shared", "again")}
        second = "w" if options.get("shared") else "v"
        path = stored(
            folder / "gemm.onnx",
            [
                N("MatMul", ["x", "i"], ["a"]), N("Relu", ["a"], ["b"]), N("Gemm", ["b", "w", "c"], ["d"], **given), N("Relu", ["d"], ["e"]),
                N("Gemm", ["e", second, "c"], ["f"], transB=options.get("again", 1) if options.get("shared") else 0), N("MatMul", ["f", "o"], ["y"]),
            ],
            [VALUE("x", FLOAT, ["n", 16])], [VALUE("y", FLOAT, ["n", 5])],
            {"i": (16, 32), "w": (32, 32), "v": (32, 32), "c": (32,), "o": (32, 5)},
        )  # fmt: skip
        x = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)

        def check(path: Path = path, x: Any = x) -> str:
            model = onnx.load(str(path))
            normalising.normalise(model)
            plain = all(
                (helper.get_node_attr_value(node, key) if any(a.name == key for a in node.attribute) else 1.0) == 1.0
                for node in model.graph.node if node.op_type == "Gemm" for key in ("alpha", "beta")
            )  # fmt: skip
            return same(run_file(model, x=x)[0], run_file(path, x=x)[0]) + (", no factor left" if plain else ", factors LEFT")

        yield name, f"{SAME}, no factor left", told(check)


@kind("operators and layers")
def structure(_: Path) -> Iterator[Row]:
    from tests.conftest import randomise
    from tests.structure.torch.test_kinds import KINDS as MODELS
    from tests.structure.torch.test_kinds import random_keep

    for name, make in MODELS.items():

        def check(make: Callable[[], Any] = make) -> str:
            torch.manual_seed(0)
            model, shape = make()
            model = randomise(model).double().eval()
            draw = torch.Generator().manual_seed(1)
            x = torch.randn(shape, generator=draw, dtype=torch.float64)
            graph = hwprune.trace(model, (x,))
            free = [axis for axis in graph.axes if axis.frozen is None]
            exact = {axis.name: random_keep(axis.size, draw) for axis in free if axis.exact}
            with torch.no_grad():
                off = float((graph.cut(exact)(x) - graph.mask(exact)(x)).abs().max())
            return "cut as masked" if free and off < 1e-9 else f"{len(free)} axes free, off by {off:.2g}"

        yield name, "cut as masked", told(check)


@kind("advice")
def advice(_: Path) -> Iterator[Row]:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x * 2 if x.sum() > 0 else x)  # type: ignore[no-any-return]

    class Textual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body()

        def forward(self, x: torch.Tensor) -> Any:
            return {"name": f"{self.body(x).shape}"}

    def uniform(model: nn.Module) -> str:
        pruner = Pruner(workload(model))
        return str(hwprune.uniform_recipe(pruner, "channel", 0.5))

    scripted = torch.jit.trace(body(), IMAGES[:1])  # type: ignore[no-untyped-call]
    for name, words, function in (
        ("a branch on values, apply", "takes a Python branch", lambda: uniform(Branching())),
        ("TorchScript, trace", "bring the nn.Module", lambda: hwprune.trace(scripted, (IMAGES[:1],))),
        ("too many inputs, trace", "Its forward takes", lambda: hwprune.trace(body(), (IMAGES[:1], IMAGES[:1]))),
        ("no tensor among the outputs", "no tensor", lambda: score(Textual(), Textual(), workload(Textual()))),
        (
            "a metric that raises",
            "raised",
            lambda: score(body(), body(), workload(body(), IMAGES, torch.zeros(120).long(), metric=lambda _o, t: t["no"])),
        ),
    ):
        yield name, f"refused: ... {words} ...", says(words, told(function))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    heading("Inputs with traits of people's own")
    start, findings, rows = time.time(), 0, 0
    counts: dict[str, collections.Counter[bool]] = {}
    for name, function in KINDS.items():
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        counts[name] = collections.Counter()
        print(f"\n### {name}\n\n| input | right | got | |\n| --- | --- | --- | --- |")
        with tempfile.TemporaryDirectory() as place:
            for variation, right, got in function(Path(place)):
                fine = right == got
                counts[name][fine] += 1
                rows, findings = rows + 1, findings + (not fine)
                print(f"| {variation} | {right} | {got} | {'' if fine else '**WRONG**'} |", flush=True)
    print(f"\n{rows} inputs of {len(counts)} kinds in {time.time() - start:.0f} s, {findings} wrong")
    raise SystemExit(findings > 0)


if __name__ == "__main__":
    main()
