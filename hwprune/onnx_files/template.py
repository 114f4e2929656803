"""The dense model's ONNX graph, from which candidates' files are made in milliseconds, without exporting again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hwprune.onnx_files import tidy, to_onnx
from hwprune.structure.branches import Branch
from hwprune.structure.dims import BoolArray
from hwprune.structure.model_graph import ModelGraph
from hwprune.structure.onnx import bordered
from hwprune.structure.onnx.bordered import OnnxTokens
from hwprune.structure.onnx.graph import OnnxGraph
from hwprune.structure.torch.graph import AxisGraph
from hwprune.structure.torch.opaque import OpaqueGraph


class Template:
    """Makes ONNX files of cut models from the file of the dense one.

    Both graphs are analysed by the same algebra. The kept indices of every parameter, known from the PyTorch graph, are
    looked up as axes of the ONNX graph; where they are not exactly axes there, `write` exports the module instead.

    Attributes:
        reason: why candidates are exported one by one, or None.
        names: tensor name -> initializer name.
    """

    def __init__(
        self,
        graph: ModelGraph,
        example_inputs: Sequence[torch.Tensor],
        dense: OnnxGraph | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Make one; the dense model is exported unless it is an ONNX model already.

        Args:
            dense: the analysed ONNX form of the dense model.
            names: tensor name -> initializer name, where they differ.

        Raises:
            CandidateFailure: the dense model can't be exported.
        """
        self._given = names or {}
        self.reason: str | None = None
        self.names: dict[str, str] = {}
        self._graph = graph
        self._inputs = tuple(example_inputs)
        self._tokens: OnnxTokens | str | None = None
        self._origin = None if dense is None else dense.model
        if isinstance(graph, OpaqueGraph):
            self.reason = "the model can't be traced"
            return
        if dense is None:
            model = tidy.prepare(to_onnx.exported(graph.module, self._inputs))
            dense = OnnxGraph(model, named=set(_tensors(graph.module)))
        self.dense = dense
        self.names, missing = self._find()
        if missing:
            self.reason = f"{missing} is not among the initializers of the ONNX model"

    def write(self, module: torch.nn.Module, keeps: Mapping[str, torch.Tensor], path: Path, drop: Collection[str] = ()) -> bool:
        """Write ``module``: the dense model cut by ``keeps``, without the branches ``drop``, any weights. Was the template used?

        Raises:
            CandidateFailure: it has to be exported, and can't be.
        """
        model = self.model(module, keeps, drop)
        if model is None:
            to_onnx.to_onnx(module, self._inputs, path, self._origin)
            return False
        to_onnx.save_onnx(model, path)
        return True

    def model(
        self, module: torch.nn.Module, keeps: Mapping[str, torch.Tensor], drop: Collection[str] = ()
    ) -> onnx.ModelProto | None:
        """The ONNX model, or None if the template can't give it."""
        if self.reason is not None:
            return None
        selected = self._graph.selected(keeps)
        if not set(selected) <= set(self.names):
            return None
        shapes: dict[str, list[BoolArray]] = {self.names[name]: masks for name, masks in selected.items()}
        tensors = {self.names[name]: _array(tensor) for name, tensor in _tensors(module).items() if name in self.names}
        branches = [self._branch(name) for name in drop]
        dropped = [branch for branch in branches if branch is not None]
        if len(dropped) < len(branches):
            return None
        fewer = self._fewer_tokens(keeps, drop)
        if fewer:
            tokens = self.tokens
            model = None if isinstance(tokens, str) else tokens.model(fewer, shapes, tensors, dropped)
        else:
            masks = self.dense.masks_for(shapes)
            model = None if masks is None else self.dense.cut_leaves(masks, tensors, dropped)
        return None if model is None else tidy.fold(model)

    @property
    def tokens(self) -> OnnxTokens | str:
        """The borders at which tokens can be made fewer, or why there are none; found when first asked for."""
        if self._tokens is None:
            assert isinstance(self._graph, AxisGraph)  # nothing else has any
            found = self._graph.tokens
            sizes = {item.name: tuple(x.shape) for item, x in zip(self.dense.model.graph.input, self._inputs, strict=False)}
            self._tokens = bordered.build(self.dense, found.chain, found.borders, self.names, sizes)
        return self._tokens

    def _fewer_tokens(self, keeps: Mapping[str, torch.Tensor], drop: Collection[str]) -> dict[str, int]:
        """Token axis -> how many of its tokens stay, of those that still have their attention."""
        names = {axis.name for axis in self._graph.token_axes} - self._graph.dead_tokens(drop)
        return {name: int(keep.sum()) for name, keep in keeps.items() if name in names and not bool(keep.all())}

    def _branch(self, name: str) -> Branch | None:
        """The ONNX graph's branch whose dropping leaves the same parameters without a reader.

        Sums that lie inside one another may leave the same ones: then both graphs must have as many, in the same order.
        """
        initializers = set(self.names.values())

        def mine(branch: Branch) -> frozenset[str]:
            return frozenset(self.names[parameter] for parameter in branch.parameters if parameter in self.names)

        wanted = mine(self._graph.branch(name))
        here = [branch.name for branch in self._graph.branches if mine(branch) == wanted]
        there = [branch for branch in self.dense.branches if initializers.intersection(branch.parameters) == wanted]
        return there[here.index(name)] if len(here) == len(there) else None

    def differs(self, keeps: Mapping[str, torch.Tensor]) -> list[str]:
        """The axes among ``keeps`` that the ONNX graph can't cut alone, each with the reason if there is one."""
        reasons = []
        tokens = {axis.name for axis in self._graph.token_axes}
        for name, keep in keeps.items():
            if name in tokens:
                continue
            selected = self._graph.selected({name: keep})
            shapes = {self.names[parameter]: masks for parameter, masks in selected.items() if parameter in self.names}
            if self.dense.masks_for(shapes) is None:
                frozen = [
                    a.frozen for a in self.dense.axes if a.frozen and any((m[0], m[1]) in a.members for m in self._members(name))
                ]
                reasons.append(f"{name}: {frozen[0] if frozen else 'other axes are tied to it'}")
        return reasons

    def _members(self, axis: str) -> list[tuple[str, int]]:
        return [(self.names.get(name, name), dim) for name, dim in self._graph.axis(axis).members]

    def _find(self) -> tuple[dict[str, str], str | None]:
        """Tensor name -> initializer name, and the first tensor that has none."""
        stored = {item.name: item for item in self.dense.model.graph.initializer}
        state = self._graph.module.state_dict()
        aliases: dict[int, list[str]] = {}  # the exporter keeps one of several tied names
        for name, tensor in self._graph.module.state_dict(keep_vars=True).items():
            aliases.setdefault(id(tensor), []).append(name)
        matched: dict[str, str] = {}
        for name, tensor in _tensors(self._graph.module).items():
            names = [self._given.get(name, name), *aliases.get(id(tensor), ())]
            initializer = next((alias for alias in names if alias in stored), None)
            if initializer is None and (not tensor.is_floating_point() or name not in state):
                continue  # constants, such as a table of positions, were folded into others
            if initializer is None or tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16
                return matched, name
            if not np.array_equal(onnx.numpy_helper.to_array(stored[initializer]), _array(tensor)):
                return matched, name
            matched[name] = initializer
        return matched, None


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().contiguous().numpy()


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and constant that the graph reads."""
    tensors = {}
    assert isinstance(module, torch.fx.GraphModule)
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.users and str(node.target) != "training":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if isinstance(value, torch.Tensor):
                tensors[str(node.target)] = value
    return tensors
