"""A model in a runtime's own format: made from the ONNX file by a converter in a process of its own, once for its shapes.

Converters crash, hang, print, and change what a model computes; none of that may end a measurement or stay unseen. The process is
`hwprune.deploy.converters`. It also computes what ONNX Runtime gives on made-up inputs, and what comes out of the converted file
is compared with that before it is used (`check`).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.common.files import cache_folder
from hwprune.errors import UsageError
from hwprune.runtimes.base import library_version
from hwprune.runtimes.converter_process import ConversionError, ConverterProcess
from hwprune.version import VERSION

FACTS = "conversion.json"
EXPECTED = "expected.npz"
TOLERANCE = 5e-3
"""Largest difference from ONNX Runtime, relative to the largest entry of an output, that is taken for how the runtime computes.
Other orders of summing in fp32 make 4e-7 to 4e-6; MNN, which approximates exponentials and error functions, 1e-4 on a
small vision transformer and 1e-3 on MiniLM. (`make bench-runtimes`.) What MNN makes of ``Det``, which is
wrong, is off by 2."""
FLOOR = 0.01
"""Outputs that are smaller all over are compared as if their largest entry were this; see `hwprune.workload.closeness`."""
PACKAGES = {
    "mnn": ("MNN",), "ncnn": ("pnnx",), "litert": ("litert-torch", "litert-converter"), "executorch": ("executorch",), "onnx": (),
}  # fmt: skip
"""Kind of a conversion -> the packages whose versions decide what comes out."""
LIMIT_S = 300.0
"""Seconds that one conversion may take."""
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes in and comes out of a model of fixed sizes.

    Attributes:
        inputs: name, NumPy's name of the type, and shape of each.
        outputs: the same.
    """

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        inputs, outputs = (
            tuple((str(name), str(kind), tuple(int(size) for size in shape)) for name, kind, shape in data[side])
            for side in ("inputs", "outputs")
        )
        return cls(inputs, outputs)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model.

    Attributes:
        folder: its files, ``conversion.json`` and ``expected.npz``.
        signature: of the model.
        facts: what the converter says: ``seconds``, ``version``, what it handed to slower kernels.
    """

    folder: Path
    signature: Signature
    facts: Mapping[str, Any]


def convert(kind: str, source: Path, shapes: Shapes, limit_s: float = LIMIT_S) -> Converted:
    """The converted form of an ONNX file, beside it in ``STEM-KIND/``; made if it is not there, or is of another file.

    Args:
        kind: which converter; a key of `hwprune.deploy.converters.CONVERTERS`.
        shapes: of the inputs; empty: as the file says, with 1 for free sizes.
        limit_s: seconds after which the converter is ended.

    Raises:
        ConversionError: the converter refuses the model, dies, or takes too long.
    """
    stamp = {
        "source": _digest(source), "shapes": [list(shape) for shape in shapes], "hwprune": VERSION, "converters": _versions(kind),
    }  # fmt: skip
    folder = _writable(source.parent) / f"{source.stem}-{kind}" / _size(shapes)
    if (known := _known(folder, stamp)) is not None:
        return known
    tried = json.dumps([str(folder), stamp])
    if tried in _REFUSED:
        raise _REFUSED[tried]
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        asked = {"kind": kind, "source": str(source.absolute()), "shapes": stamp["shapes"], "folder": str(partial.absolute())}
        try:
            answer = _converter(kind).ask(asked, limit_s)
            if "error" in answer:
                raise ConversionError(answer["error"], answer.get("refused", ()))
        except ConversionError as error:
            _REFUSED[tried] = error
            raise
        (partial / FACTS).write_text(json.dumps({**stamp, **answer}), encoding="utf-8")
        return _take_place(partial, folder, stamp)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, folder: Path, stamp: Mapping[str, Any]) -> Converted:
    """Put a finished folder where it belongs. One that another process has put there meanwhile stays: it is in use."""
    while True:
        try:
            partial.rename(folder)
        except OSError:
            if (known := _known(folder, stamp)) is not None:
                return known
            old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            with contextlib.suppress(OSError):
                folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
            continue
        made = _known(folder, stamp)
        assert made is not None
        return made


def _size(shapes: Shapes) -> str:
    """A name for the sizes of all inputs: those of the first in words, and of all as a hash where there are several."""
    first = "x".join(str(size) for size in shapes[0]) if shapes and shapes[0] else "as-it-is"
    if len(shapes) < 2:
        return first
    return f"{first}-{hashlib.sha256(json.dumps([list(shape) for shape in shapes]).encode()).hexdigest()[:8]}"


def _versions(kind: str) -> list[str]:
    """The packages that convert, as this environment has them; the other environment's where it is named, by its path."""
    if f"HWPRUNE_{kind.upper()}_PYTHON" in os.environ:
        return [python_of(kind)]
    return [library_version(package) for package in PACKAGES.get(kind, ())]


def check(made: Converted, outputs: Sequence[np.ndarray[Any, Any]], what: str) -> None:
    """Raise `ConversionError` if the outputs are not those that ONNX Runtime computed on the same inputs."""
    wanted = expected(made)[1]
    if len(outputs) != len(wanted):
        raise ConversionError(f"{what} gives {len(outputs)} outputs, the ONNX file {len(wanted)}")
    for (name, _, _), got, right in zip(made.signature.outputs, outputs, wanted, strict=True):
        off = difference(got, right)
        if not off <= TOLERANCE:
            raise ConversionError(
                f"{what} computes something else than the ONNX file: output {name} differs by {off:.2g} of its largest entry "
                f"(allowed: {TOLERANCE:g})"
            )


def expected(made: Converted) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Made-up inputs, and what ONNX Runtime computes of them."""
    with np.load(made.folder / EXPECTED, allow_pickle=False) as arrays:
        return tuple([arrays[name] for name in sorted(arrays.files) if name.startswith(side)] for side in ("in", "out"))  # type: ignore[return-value]


def difference(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """The largest difference, relative to the largest entry wanted; infinite where shapes differ or only one is finite."""
    if got.shape != wanted.shape:
        return float("inf")
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    scale = max(float(np.abs(b[np.isfinite(b)]).max(initial=0.0)), FLOOR)
    worst = float(off.max(initial=0.0)) / scale
    return worst if np.isfinite(worst) else float("inf")


def _known(folder: Path, stamp: Mapping[str, Any]) -> Converted | None:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if any(facts.get(key) != value for key, value in stamp.items()):
        return None
    return Converted(folder, Signature.from_json(facts["signature"]), facts)


def _digest(source: Path) -> str:
    """The content of the file and of the weights beside it, as one hash."""
    digest = hashlib.sha256()
    for path in parts_of(source):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def parts_of(source: Path) -> list[Path]:
    """An ONNX file and the files with its weights, as it names them; of one that can't be read only itself."""
    import onnx

    try:
        model = onnx.load(str(source), load_external_data=False)
    except Exception:  # protobuf's own errors; whoever loads it will tell
        return [source]
    tensors = [item for item in model.graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]
    names = {entry.value for item in tensors for entry in item.external_data if entry.key == "location"}
    return [source, *(path for name in sorted(names) if (path := source.parent / name).is_file())]


def _writable(folder: Path) -> Path:
    """The folder itself, or one of the user's own where a model lies in a place that can't be written."""
    if os.access(folder, os.W_OK):
        return folder
    return cache_folder() / "converted" / hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]


_PROCESSES: dict[str, ConverterProcess] = {}
_REFUSED: dict[str, ConversionError] = {}
"""What was refused in this process: a converter that hangs is waited for once."""


def _converter(kind: str) -> ConverterProcess:
    """The process of a kind. ``HWPRUNE_LITERT_PYTHON`` and the like name the Python of another environment, where a converter's
    requirements don't go with those of the rest.
    """
    python = python_of(kind)
    if python not in _PROCESSES:
        _PROCESSES[python] = ConverterProcess(python)
        atexit.register(_PROCESSES[python].close)
    return _PROCESSES[python]


def python_of(kind: str) -> str:
    """The Python that converts. Raises `UsageError` where the one that is named is not there."""
    python = os.environ.get(f"HWPRUNE_{kind.upper()}_PYTHON", sys.executable)
    if not shutil.which(python):
        raise UsageError(f"HWPRUNE_{kind.upper()}_PYTHON names {python}, which is no program")
    return python
