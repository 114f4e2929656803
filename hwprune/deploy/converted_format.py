"""Export in another runtime's own format: converted, run there, and compared with ONNX Runtime before it is handed over."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hwprune import runtimes
from hwprune.common.files import dump_json, write_atomic
from hwprune.deploy.build_check import ToBuild, check_builds
from hwprune.deploy.onnx_format import write_onnx
from hwprune.deploy.point import ExportedPoint, copy_recipe
from hwprune.errors import CandidateFailure, UnavailableError, UsageError
from hwprune.latency.bench import Bench
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.runtimes import tensorrt_rtx
from hwprune.runtimes.fixed_sizes import ConvertedRuntime

CARD = "rtx-4090"
"""The profile that stands for any card where an engine is built for all."""


def write_converted(name: str) -> Callable[[ExportedPoint], list[str]]:
    """What writes a point as the files of the target ``name``, whose runtime has a format of its own."""

    def write(point: ExportedPoint) -> list[str]:
        target = targets.load(name)
        runtime = runtimes.get(target.runtime)
        assert isinstance(runtime, ConvertedRuntime)
        if reason := runtime.missing():
            raise UsageError(f"nothing can be converted for {name} here: {reason}")
        shapes = [tuple(shape) for shape in point.record.data["workload"]["example_shapes"]]
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "model.onnx"
            write_onnx(point.onnx_file, source, point.options)
            try:
                with Bench(target, shapes=shapes) as bench:  # a process of its own: converted files may crash their runtime
                    bench.load("model", source)
            except CandidateFailure as failure:
                raise CandidateFailure("export", f"{name}: {failure.reason}") from failure
            made = runtime.convert(source, tuple(shapes)).folder
            for file in runtime.files:
                shutil.copyfile(made / file, point.out / file)
        return [*copy_recipe(point), *runtime.files]

    return write


def write_tensorrt_rtx(point: ExportedPoint) -> list[str]:
    """The ONNX file, and an engine for the run's own GPU, or for each generation that TensorRT for RTX builds it for.

    ``engines.json`` says which, and why not the others.
    """
    if reason := tensorrt_rtx.missing():
        raise UnavailableError(reason)
    write_onnx(point.onnx_file, point.out / "model.onnx", point.options)
    shapes = point.record.data["workload"]["example_shapes"]
    engines, found = [], {}
    for target in _cards(point):
        built = check_builds([ToBuild("model", point.out / "model.onnx", shapes)], target, point.out)["model"]
        found[f"{target.compute_capability / 10:g}"] = built.to_json()
        if built.builds:
            engines.append(f"model.sm{target.compute_capability}.engine")
    if not engines:  # not each generation takes everything: Turing has no products in 32 bits
        raise CandidateFailure("export", "; ".join(f"compute capability {name}: {one['reason']}" for name, one in found.items()))
    write_atomic(point.out / "engines.json", dump_json({"builder": tensorrt_rtx.version(), "engines": found}))
    return [*copy_recipe(point), *(path.name for path in sorted(point.out.glob("model.onnx*"))), *engines, "engines.json"]


def _cards(point: ExportedPoint) -> list[Target]:
    """The run's target where it is one that is built for; else all generations, in the precision that was asked for."""
    profile = point.record.data["target"].get("profile")
    known = tensorrt_rtx.capabilities()
    if profile and Target.from_json(profile).compute_capability in known:
        return [Target.from_json(profile)]
    data = {**targets.load(CARD).to_json(), "precision": point.options.precision}
    return [Target.from_json({**data, "name": f"sm{number}", "compute_capability": number}) for number in known]
