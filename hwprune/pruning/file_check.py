"""A written ONNX file, loaded and run once: a file that nothing loads is no result."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from hwprune import runtimes
from hwprune.errors import CandidateFailure, described
from hwprune.runtimes import RuntimeSettings
from hwprune.workload import closeness
from hwprune.workload.workload import all_tensors

RUNTIME = "onnxruntime-cpu"


@torch.no_grad()
def check_file(path: Path, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Run a file on inputs, and compare with the module; the largest relative difference.

    Without ONNX Runtime ONNX's own checker looks at it.

    Raises:
        CandidateFailure: (stage ``export``) it can't be loaded or run, (``parity``) it computes something else.
    """
    if runtimes.missing(RUNTIME):
        try:
            onnx.checker.check_model(str(path))
        except Exception as error:  # onnx raises its own types
            raise CandidateFailure("export", f"{path.name} is no valid ONNX file: {described(error)}") from error
        return 0.0
    try:
        runner = runtimes.get(RUNTIME).load(path, RuntimeSettings())
        got = [torch.from_numpy(array) for array in runner.run([x.detach().cpu().numpy() for x in inputs])]
    except Exception as error:  # the runtime raises its own types
        raise CandidateFailure("export", f"ONNX Runtime does not load and run {path.name}: {described(error)}") from error
    module.eval()
    wanted = all_tensors(module(*inputs))
    off = closeness.largest(got, wanted, chooses=bool(getattr(module, "meta", {}).get("chooses")))
    if not off <= closeness.TOLERANCES[closeness.of_model(module, inputs)]:
        raise CandidateFailure(
            "parity", f"{path.name} computes something else than the pruned module (relative difference {off:.2g})"
        )
    return off
