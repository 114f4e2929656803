"""An ONNX file with a cache as OpenVINO's own files, with the cache as a state: what its GenAI library and Optimum load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.errors import RunError
from hwprune.runtimes.openvino_states import EXACT_CACHE, state_pairs, where_they_stand, with_states
from hwprune.streaming.cached_onnx import TOLERANCE, CacheShape

FILE = "openvino_model.xml"
"""The name that Optimum reads; the weights lie beside it, in ``openvino_model.bin``."""


def write_stateful(onnx: Path, shape: CacheShape, folder: Path, ids: torch.Tensor) -> Path:
    """Write the model, weights as they are, and run it beside ONNX Runtime: half of a text, then the rest; alone, and padded.

    Inputs are ``input_ids`` and ``beam_idx``, and ``attention_mask`` and ``position_ids`` where texts can be padded on the left.

    Args:
        ids: (1, tokens) of text.

    Raises:
        RunError: it computes something else.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(str(onnx))
    wanted = _wanted(onnx, shape, ids)
    for padded in (True, False):
        made = with_states(model, state_pairs(model), padded=padded)
        compiled = core.compile_model(made, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **EXACT_CACHE})
        difference = max(_differences(compiled, wanted, ids.numpy(), padded=padded))
        if difference <= TOLERANCE:
            folder.mkdir(parents=True, exist_ok=True)
            openvino.save_model(made, str(folder / FILE), compress_to_fp16=False)
            return folder / FILE
    raise RunError(f"{onnx} computes something else in OpenVINO (difference {difference:.2g} of the largest logit)")


def _differences(compiled: Any, wanted: np.ndarray, ids: np.ndarray, *, padded: bool) -> list[float]:
    """Largest differences of logits over the largest logit: of a text in two steps, and beside a longer one."""
    count = ids.shape[1]
    texts = [np.ones((1, count), np.int64)]
    if padded:
        texts.append(np.ones((2, count + 3), np.int64))
        texts[1][0, :3] = 0
    found = []
    for mask in texts:
        request = compiled.create_infer_request()
        # Padding is no text of the model: any token stands there.
        given = np.concatenate([np.zeros((1, mask.shape[1] - count), np.int64), ids], axis=1).repeat(len(mask), axis=0)
        half = given.shape[1] - count // 2
        logits = []
        for start, end in ((0, half), (half, given.shape[1])):
            fed = where_they_stand(compiled, mask[:, :end], end - start)
            logits.append(np.array(request.infer({0: given[:, start:end]} | fed)[0])[:1])
        last = np.concatenate(logits, axis=1)[:, -count:]
        found.append(float(np.abs(last - wanted).max() / max(float(np.abs(wanted).max()), 1e-30)))
    return [one if np.isfinite(one) else np.inf for one in found]


def _wanted(onnx: Path, shape: CacheShape, ids: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    logits: np.ndarray = session.run(None, dict(zip(names, [ids.numpy(), *shape.empty(1, 0)], strict=True)))[0]
    return logits
