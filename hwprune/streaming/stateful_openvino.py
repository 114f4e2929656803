"""An ONNX file with a cache as OpenVINO's own files, with the cache as a state: what its GenAI library and Optimum load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.common.telling import Tell, silent
from hwprune.errors import RunError, described
from hwprune.runtimes.openvino_states import EXACT_CACHE, state_pairs, where_they_stand, with_states
from hwprune.streaming.cached_onnx import TOLERANCE, CacheShape

FILE = "openvino_model.xml"
"""The name that Optimum reads; the weights lie beside it, in ``openvino_model.bin``."""


EXACT = {"INFERENCE_PRECISION_HINT": "f32", **EXACT_CACHE}
WHOLE_ACTIVATIONS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""By itself OpenVINO rounds the inputs of products whose weights have fewer bits, as ONNX Runtime does, but not alike."""


def write_stateful(onnx: Path, shape: CacheShape, folder: Path, ids: torch.Tensor, *, quantised: bool = False) -> Path:
    """Write the model, weights as they are, and run it: half of a text, then the rest; alone, and padded.

    It must compute what ONNX Runtime does, or, ``quantised``, what OpenVINO makes of the file without all this.

    Inputs are ``input_ids`` and ``beam_idx``, and ``attention_mask`` and ``position_ids`` where texts can be padded on the left.

    Args:
        ids: (1, tokens) of text.

    Raises:
        RunError: it computes something else.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(str(onnx))
    how = EXACT | (WHOLE_ACTIVATIONS if quantised else {})
    wanted = _as_it_is(core.compile_model(model, "CPU", how), shape, ids) if quantised else _wanted(onnx, shape, ids)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        for padded in (True, False):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            openvino.save_model(
                with_states(model, state_pairs(model), padded=padded), str(partial / FILE), compress_to_fp16=False
            )
            difference = max(
                _differences(core.compile_model(str(partial / FILE), "CPU", how), wanted, ids.numpy(), padded=padded)
            )
            if difference <= TOLERANCE:
                shutil.rmtree(folder, ignore_errors=True)  # a killed run's
                partial.rename(folder)
                return folder / FILE
    except RuntimeError as error:  # OpenVINO raises nothing else, a full disk included
        raise RunError(f"{folder / FILE} can't be written, or does not run: {described(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    raise RunError(f"{onnx} computes something else in OpenVINO (difference {difference:.2g} of the largest logit)")


def window_losses(path: Path, ids: torch.Tensor, step: Tell = silent) -> torch.Tensor:
    """(windows,) mean negative log-likelihood of each window's tokens after its first, in nats, as OpenVINO computes it.

    Args:
        path: an ONNX file with a cache.
        ids: (windows, tokens).

    Raises:
        RunError: it does not run.
    """
    import openvino

    try:
        model = openvino.Core().read_model(str(path))
        compiled = openvino.Core().compile_model(with_states(model, state_pairs(model)), "CPU", EXACT)
        found = []
        for window in range(len(ids)):
            step("evaluating windows", window, len(ids))
            place = where_they_stand(compiled, np.ones((1, ids.shape[1]), np.int64), ids.shape[1])
            logits = compiled.create_infer_request().infer({0: ids[window : window + 1].numpy()} | place)[0]
            words = torch.from_numpy(np.array(logits)[0, :-1])
            found.append(float(torch.nn.functional.cross_entropy(words, ids[window, 1:])))
    except RuntimeError as error:
        raise RunError(f"{path} does not run in OpenVINO: {described(error)}") from error
    return torch.tensor(found, dtype=torch.float64)


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


def _as_it_is(compiled: Any, shape: CacheShape, ids: torch.Tensor) -> np.ndarray:
    return np.array(compiled.create_infer_request().infer(dict(enumerate([ids.numpy(), *shape.empty(1, 0)])))[0])


def _wanted(onnx: Path, shape: CacheShape, ids: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    logits: np.ndarray = session.run(None, dict(zip(names, [ids.numpy(), *shape.empty(1, 0)], strict=True)))[0]
    return logits
