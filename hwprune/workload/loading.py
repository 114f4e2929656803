"""WORKLOAD on the command line -> a `Workload`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune import runtimes
from hwprune.errors import HwpruneError, UsageError, WorkloadError
from hwprune.onnx_files import read_onnx
from hwprune.workload import demos, libraries, neighbours, npz_file, onnx_file, onnx_signature, source_words
from hwprune.workload.workload import Workload

FORMS = (
    "demo:digits, demo:digits-vit, path/to/file.py:function, package.module:function, model.onnx, or with --data "
    "hf:NAME-or-folder, timm:NAME, torchvision:NAME"
)


def load(source: str, *, structure_only: bool = False) -> Workload:
    """A workload from its source: one of the forms of ``FORMS``, then ``key=value`` words for the function.

    Args:
        structure_only: an ONNX model may come without data.

    Raises:
        UsageError: the text has no such form, or the file, module or function does not exist.
        WorkloadError: the function raised or returned something else.
    """
    word, *rest = source_words.split(source) or [""]
    arguments = parse_arguments(rest)
    if word.endswith(".onnx"):
        return dataclasses.replace(_onnx(Path(word), arguments, structure_only=structure_only), source=source)
    kind, _, name = word.rpartition(":")
    if not kind:
        if Path(word).is_dir():
            raise UsageError(f"{word} is a folder. Did you mean hf:{word}? Forms: {FORMS}")
        raise UsageError(f"workload {word!r} has no ':'. Forms: {FORMS}")
    if kind == "demo":
        if arguments:
            raise UsageError(f"demo:{name} takes no arguments, got {', '.join(arguments)}")
        return demos.get(name)
    if (library := word.partition(":")[0]) in libraries.KINDS:
        where = str(arguments.pop("data", ""))
        data = partial(_library_data, where) if where else None
        return dataclasses.replace(libraries.load(library, word.partition(":")[2], arguments, data), source=source)
    workload = _result(word, arguments)
    if not isinstance(workload, Workload):
        raise WorkloadError(f"{word} must return a hwprune.Workload, got {type(workload).__name__}")
    return dataclasses.replace(workload, source=source)


def _result(word: str, arguments: Mapping[str, Any]) -> Any:
    """What the function that a word names returns; it may import what lies beside its file, or in the current folder."""
    kind = word.rpartition(":")[0]
    with neighbours.importable(Path(kind).parent if kind.endswith(".py") else Path.cwd()):
        return _call(_function(word), arguments, word)


def _function(word: str) -> Callable[..., Any]:
    """The function that ``file.py:function`` or ``package.module:function`` names."""
    kind, _, name = word.rpartition(":")
    module = _from_file(Path(kind)) if kind.endswith(".py") else _from_module(kind, word)
    function = getattr(module, name, None)
    if not callable(function):
        defined = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise UsageError(f"{kind} has no function {name!r}; it has: {', '.join(sorted(defined)) or 'none'}")
    return function  # type: ignore[no-any-return]


def _onnx(path: Path, arguments: dict[str, Any], *, structure_only: bool) -> Workload:
    """An ONNX model with its data from an .npz file or a function."""
    if not path.is_file():
        raise UsageError(f"there is no file {path} (looked in {Path.cwd()})")
    where = str(arguments.pop("data", ""))
    if where.endswith((".npz", ".npy")):
        proto = read_onnx(path)
        data = npz_file.read_npz(Path(where), onnx_signature.inputs_of(proto), declared=onnx_signature.declared(proto))
    elif ":" in where:
        data = _fields(where)
    elif where:
        raise UsageError(f"--data takes file.npz, file.py:function or package.module:function, got {where!r}")
    elif structure_only:
        data = None
    else:
        raise UsageError(f"{path} comes without data: give --data file.npz (an array for each input) or --data file.py:function")
    missing = runtimes.missing("onnxruntime-cpu")
    return onnx_file.load(path, data, arguments, None if missing else _run_once)


def _fields(where: str) -> dict[str, Any]:
    """The splits that a function for ``--data`` returns."""
    data = _result(where, {})
    if not isinstance(data, Mapping):
        raise WorkloadError(
            f"{where} must return a dict with validation (and calibration, test, metric), got {type(data).__name__}"
        )
    return dict(data)


def _library_data(where: str, inputs: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Data for a model with these inputs, and the names of those that there are; a function's come in the model's order."""
    if where.endswith(".npz"):
        names = npz_file.named_inputs(Path(where), inputs)
        return npz_file.read_npz(Path(where), names), names
    if ":" not in where:
        raise UsageError(f"--data takes file.npz, file.py:function or package.module:function, got {where!r}")
    return _fields(where), []


def _run_once(path: Path, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime makes of the file."""
    runner = runtimes.get("onnxruntime-cpu").load(path, runtimes.RuntimeSettings())
    return runner.run([x.numpy() for x in inputs])


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words; a value that reads as a number or true/false becomes one."""
    result: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"words after WORKLOAD must be key=value, got {word!r}")
        result[key] = _value(text)
    return result


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file {path} (looked in {Path.cwd()})")
    module = neighbours.module_of(path.resolve())
    assert module.__spec__ is not None and module.__spec__.loader is not None  # it was made from a spec
    try:
        module.__spec__.loader.exec_module(module)
    except HwpruneError:
        raise
    except Exception as error:  # the user's file may raise anything
        raise WorkloadError(f"{path} raised {type(error).__name__} while it was imported: {error}") from error
    return module


def _from_module(name: str, word: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise UsageError(f"workload {word!r}: there is no module {error.name!r}. Forms: {FORMS}") from error
        raise WorkloadError(f"module {name} needs {error.name!r}, which is not installed") from error
    except HwpruneError:
        raise
    except Exception as error:  # the user's module may raise anything
        raise WorkloadError(f"module {name} raised {type(error).__name__} while it was imported: {error}") from error


def _call(function: Callable[..., Any], arguments: Mapping[str, Any], word: str) -> Any:
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        if "data" in arguments:
            raise UsageError(
                f"--data is for model.onnx, hf:, timm: and torchvision:; the function of {word} brings its own data"
            ) from error
        raise UsageError(f"{word} can't be called with {dict(arguments)}: {error}") from error
    try:
        result = function(**arguments)
    except HwpruneError:
        raise
    except Exception as error:  # the user's function may raise anything
        where = _place(error)
        raise WorkloadError(f"{word} raised {type(error).__name__}{where}: {error}") from error
    return result


def _place(error: BaseException) -> str:
    """Where in the user's code it was raised."""
    trace = error.__traceback__
    last = ""
    while trace is not None:
        last = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return last
