"""The ONNX part of the zoo: a candidate's file from the template, run by ONNX Runtime, against the cut module."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from hwprune.errors import CandidateFailure
from hwprune.onnx_files.template import Template


def run(path: Path, inputs: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {node.name: x.numpy() for node, x in zip(session.get_inputs(), inputs, strict=False)})


def largest(module: torch.nn.Module, path: Path, inputs: Any) -> float:
    """Largest difference over all floating outputs, relative to the largest entry of each."""
    with torch.no_grad():
        expected = [y for y in torch.utils._pytree.tree_leaves(module(*inputs)) if isinstance(y, torch.Tensor)]
    worst = 0.0
    for y, got in zip(expected, run(path, inputs), strict=False):
        if y.is_floating_point():
            found, finite = torch.from_numpy(got), torch.isfinite(y)
            worst = max(worst, float((y - found)[finite].abs().max()) / max(float(y[finite].abs().max()), 1e-30))
    return worst


def examine(graph: Any, small: torch.nn.Module, keeps: dict[str, torch.Tensor], inputs: Any) -> dict[str, Any]:
    """``small``: everything cut by half, ``keeps``."""
    row: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        template = Template(graph, inputs)
    except CandidateFailure as failure:
        return {"onnx_route": f"the dense model can't be exported: {failure.reason}"[:200]}
    row["onnx_export_s"] = time.perf_counter() - start
    row["onnx_nodes"] = len(template.dense.model.graph.node)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        template.write(graph.module, {}, path)
        row["onnx_dense_error"] = largest(graph.module, path, inputs)
        start = time.perf_counter()
        model = template.model(small, keeps)
        row["onnx_s"] = time.perf_counter() - start
        if model is None:
            row["onnx_route"] = template.reason or "axes differ"
            row["onnx_differs"] = template.differs(keeps)
            return row
        template.write(small, keeps, path)
        row["onnx_route"] = "template"
        row["onnx_error"] = largest(small, path, inputs)
    return row
