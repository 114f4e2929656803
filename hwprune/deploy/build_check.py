"""Does it build? Files of a run, or one, through NVIDIA's own parser and builder for a GPU that is not here."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from hwprune import runtimes
from hwprune.errors import CandidateFailure, UnavailableError, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import save_inputs
from hwprune.latency.paired import Settings
from hwprune.onnx_files.to_onnx import converted, save_onnx
from hwprune.records.record import read_record
from hwprune.records.target import Target
from hwprune.runtimes import Runtime, conversion, tensorrt_rtx
from hwprune.runtimes.conversion import Converted
from hwprune.runtimes.converter_process import ConversionError
from hwprune.runtimes.fixed_sizes import ConvertedRuntime
from hwprune.runtimes.tensorrt_rtx import Built
from hwprune.workload import scoring

LANGUAGE = "language.json"
"""What lies in the run of a language model's search."""


@dataclass(frozen=True, slots=True)
class ToBuild:
    """A model that is tried.

    Attributes:
        name: what it is called: ``dense``, the number of a trial, or its file.
        shapes: of its inputs; free sizes that are not said are 1.
    """

    name: str
    file: Path
    shapes: Sequence[Sequence[int]] = ()


def files_of(what: Path, shapes: Sequence[Sequence[int]] = ()) -> list[ToBuild]:
    """The dense model and the points of a run, or the one file.

    Raises:
        UsageError: it is neither.
    """
    if what.suffix == ".onnx":
        if not what.is_file():
            raise UsageError(f"there is no file {what}")
        return [ToBuild(what.name, what, shapes)]
    if (what / LANGUAGE).is_file():
        found = sorted(what.glob("candidates/*/onnx/*.onnx"))
        return [ToBuild(f"{file.parts[-3]}/{file.stem}", file) for file in found]
    record = read_record(what)
    sizes = record.data["workload"]["example_shapes"]
    found = [
        what / "baseline" / "model.onnx",
        *(what / "candidates" / str(point.trial) / "model.onnx" for point in record.front),
    ]
    names = ["dense", *(str(point.trial) for point in record.front)]
    return [ToBuild(name, file, sizes) for name, file in zip(names, found, strict=True) if file.is_file()]


def check_builds(
    files: Sequence[ToBuild],
    target: Target,
    out: Path | None = None,
    step: Callable[[str], None] = lambda _text: None,
    limit_s: float = tensorrt_rtx.LIMIT_S,
) -> Mapping[str, Built]:
    """Build each for the target's GPU, in the precision in which the target runs.

    Args:
        out: folder for the engines; None: none are kept.
        limit_s: seconds for each.

    Raises:
        UsageError: the target is no NVIDIA GPU that is built for.
        UnavailableError: the builder is not installed.
    """
    require_builder(target)
    precision = runtimes.get(target.runtime).precision_of_file(target.precision)
    found = {}
    for one in files:
        step(f"building {one.name} for {target.name}")
        engine = out and out / f"{one.name.replace('/', '-')}.sm{target.compute_capability}.engine"
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                file = _in_precision(one.file, precision, Path(scratch))
            except CandidateFailure as failure:
                found[one.name] = Built(builds=False, reason=failure.reason)
                continue
            found[one.name] = tensorrt_rtx.build_ahead(file, target.compute_capability, one.shapes, engine, limit_s)
    return found


def check_runs(
    files: Sequence[ToBuild], target: Target, out: Path | None = None, step: Callable[[str], None] = lambda _text: None
) -> Mapping[str, Built]:
    """Does the target's runtime take each, and compute what ONNX Runtime computes? Here, in this process's own converters.

    Args:
        out: folder for what the runtime's converter made; None: nothing is kept.

    Raises:
        UsageError: the target's runtime reads no ONNX files, or not in this machine's precision.
        UnavailableError: the runtime is not installed.
    """
    runtime = runtimes.get(target.runtime)
    if runtime.file != "model.onnx" or runtime.device != "cpu" or runtime.precision_of_file(target.precision) != "fp32":
        raise UsageError(f"target {target.name} can't be checked with a file alone: search or measure on it")
    if reason := runtime.missing():
        raise UnavailableError(reason)
    found = {}
    for one in files:
        step(f"trying {one.name} on {target.name}")
        with tempfile.TemporaryDirectory() as scratch:
            found[one.name] = _runs(runtime, target, one, Path(scratch), out)
    return found


def _runs(runtime: Runtime, target: Target, one: ToBuild, scratch: Path, out: Path | None) -> Built:
    """Convert, load, run and compare a copy (beside the user's own file nothing is written), in a process that may crash."""
    started = time.monotonic()
    for path in conversion.parts_of(one.file):
        place = scratch / path.relative_to(one.file.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)  # no link: ONNX refuses weights behind one
    file = scratch / one.file.name
    shapes = tuple(tuple(shape) for shape in one.shapes)
    try:
        wanted = conversion.convert("onnx", file, shapes)
        shapes = tuple(shape for _, _, shape in wanted.signature.inputs)
        made = runtime.convert(file, shapes)
        save_inputs(scratch / "inputs.npz", conversion.expected(wanted)[0])
        with Bench(target, shapes=shapes) as bench:
            bench.load("model", file)
            bench.run("model", scratch / "inputs.npz", scratch / "outputs.npz")
            # Does it also run in the way in which it is timed?
            bench.pair("model", "model", scratch / "inputs.npz", Settings(clock=bench.clock, limit_s=0.01))
        conversion.check(wanted, [x.numpy() for x in scoring.read_outputs(scratch / "outputs.npz")[0]], runtime.name)
    except ConversionError as error:
        told = [{"operator": node["operator"], "name": node["name"], "reason": str(error)} for node in error.refused]
        return Built(builds=False, seconds=time.monotonic() - started, refused=told, reason=str(error))
    except CandidateFailure as failure:
        return Built(builds=False, seconds=time.monotonic() - started, reason=failure.reason)
    size = 0
    if isinstance(made, Converted) and isinstance(runtime, ConvertedRuntime):
        size = sum((made.folder / name).stat().st_size for name in runtime.files)
        for name in runtime.files if out is not None else ():
            assert out is not None
            place = out / target.name / one.name.replace("/", "-").removesuffix(".onnx") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made.folder / name, place)
    return Built(builds=True, seconds=time.monotonic() - started, engine_bytes=size)


def require_builder(target: Target) -> None:
    """Raises `UsageError`, `UnavailableError`: nothing can be built for this target here."""
    if target.device != "cuda":
        raise UsageError(f"{target.name} is no NVIDIA GPU: measure on it instead")
    if not target.compute_capability:
        raise UsageError(f"the profile {target.name} does not say its compute_capability")
    if reason := tensorrt_rtx.missing():
        raise UnavailableError(reason)
    if target.compute_capability not in (known := tensorrt_rtx.capabilities()):
        told = ", ".join(_version(one) for one in known)
        raise UsageError(
            f"{target.name} has compute capability {_version(target.compute_capability)}; TensorRT for RTX builds for {told}"
        )


def _version(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def _in_precision(file: Path, precision: str, scratch: Path) -> Path:
    """The file, or a copy in 16 bits of one in 32."""
    model: Any = onnx.load(str(file), load_external_data=False)
    floats = {item.data_type for item in model.graph.initializer}
    if precision != "fp16" or onnx.TensorProto.FLOAT not in floats or onnx.TensorProto.FLOAT16 in floats:
        return file
    made = scratch / file.name
    try:
        save_onnx(converted(onnx.load(str(file)), precision), made)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return made
