"""An ONNX file with a cache as OpenVINO's own files, with the cache as a state: what its GenAI library and Optimum load."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from hwprune.errors import RunError
from hwprune.runtimes.openvino_states import state_pairs, with_states
from hwprune.streaming.cached_onnx import TOLERANCE, CacheShape

FILE = "openvino_model.xml"
"""The name that Optimum reads; the weights lie beside it, in ``openvino_model.bin``."""


def write_stateful(onnx: Path, shape: CacheShape, folder: Path, ids: torch.Tensor) -> Path:
    """Write the model for one text at a time, weights as they are, and run it beside ONNX Runtime: half of a text, then the rest.

    Args:
        ids: (1, tokens) of text.

    Raises:
        RunError: it computes something else.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(str(onnx))
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(with_states(model, state_pairs(model), 1), str(folder / FILE), compress_to_fp16=False)
    request = core.compile_model(str(folder / FILE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    half = ids.shape[1] // 2
    found = [np.array(request.infer([part.numpy()])[0]) for part in (ids[:, :half], ids[:, half:])]
    wanted = _wanted(onnx, shape, ids)
    difference = float(np.abs(np.concatenate(found, axis=1) - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
    if not difference <= TOLERANCE:
        shutil.rmtree(folder)
        raise RunError(f"{folder / FILE} computes something else than {onnx} (difference {difference:.2g} of the largest logit)")
    return folder / FILE


def _wanted(onnx: Path, shape: CacheShape, ids: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    logits: np.ndarray = session.run(None, dict(zip(names, [ids.numpy(), *shape.empty(1, 0)], strict=True)))[0]
    return logits
