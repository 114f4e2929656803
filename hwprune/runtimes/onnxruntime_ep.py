"""ONNX Runtime with an execution provider that lies in a library of its own: whatever a vendor has written for it."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.errors import UsageError
from hwprune.runtimes import onnxruntime_session as session
from hwprune.runtimes.base import WALL, Arrays, Runner, Runtime, RuntimeSettings, named, not_installed

OWN = ("library", "provider", "device_type")
"""Options of a profile that are ours; the others are the provider's."""


@final
class PluginRunner(Runner):
    """A session on the provider's devices. Inputs come from the host and outputs go back to it in every run, and both count."""

    def __init__(self, path: Path, settings: RuntimeSettings) -> None:
        import onnxruntime

        devices = _devices(settings.options)
        self._provider = str(devices[0].ep_name)
        session_options = session.options(settings)
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        given = {key: session.text(value) for key, value in settings.options.items() if key not in OWN}
        session_options.add_provider_for_devices(devices, given)
        self._session = onnxruntime.InferenceSession(str(path), session_options)
        self._inputs = [node.name for node in self._session.get_inputs()]
        if (got := self._session.get_providers()[0]) != self._provider:
            raise RuntimeError(f"{self._provider} could not start, ONNX Runtime fell back to {got}")
        if not self._nodes().get(self._provider):
            raise RuntimeError(f"{self._provider} takes no node of this model: all would run on {', '.join(self._nodes())}")

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        return list(self._session.run(None, named(self._inputs, inputs)))

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        feed, one = named(self._inputs, inputs), self._session
        return lambda: one.run(None, feed)

    def facts(self) -> dict[str, Any]:
        """``nodes``: provider -> how many nodes of the model it runs; what the first one does not take runs on the CPU."""
        return {"provider": self._provider, "nodes": self._nodes()}

    def _nodes(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for part in self._session.get_provider_graph_assignment_info():
            found[part.ep_name] += len(part.get_nodes())
        return dict(found)


@final
class OnnxRuntimeEp(Runtime):
    """Options of a profile: ``library``, the provider's library as a path, or the name of a Python package that has
    ``get_library_path``; ``provider``, its name where the library has several; ``device_type``, ``CPU``, ``GPU`` or ``NPU`` where
    it offers several; and the provider's own.
    """

    name = "onnxruntime-ep"
    description = "ONNX Runtime with a plug-in execution provider (its library is named in the profile)"
    precisions = ("fp32", "fp16", "int8")

    def missing(self) -> str | None:
        if reason := not_installed("onnxruntime", "cpu"):
            return reason
        import onnxruntime

        if not hasattr(onnxruntime, "register_execution_provider_library"):
            return f"plug-in providers came with ONNX Runtime 1.23; this is {onnxruntime.__version__}"
        return None

    def version(self) -> str:
        return session.version()

    def prepare(self) -> None:
        session.prepare("CPUExecutionProvider")

    def precision_of_file(self, precision: str) -> str:
        return "fp16" if precision == "fp16" else "fp32"

    def clock(self, settings: RuntimeSettings) -> str:
        return WALL

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        return PluginRunner(path, settings)


def _devices(options: Mapping[str, Any]) -> list[Any]:
    """The devices of the provider that a profile names. Raises `UsageError`."""
    import onnxruntime

    before = {str(device.ep_name) for device in onnxruntime.get_ep_devices()}
    if library := options.get("library"):
        path = _library(str(library))
        if path not in _REGISTERED:
            onnxruntime.register_execution_provider_library(f"{Path(path).stem}-{len(_REGISTERED)}", path)
            _REGISTERED[path] = {str(device.ep_name) for device in onnxruntime.get_ep_devices()} - before
    offered = onnxruntime.get_ep_devices()
    if "provider" in options:
        names = {str(options["provider"])}
    elif library:
        names = _REGISTERED[_library(str(library))]
    else:
        raise UsageError("the profile names neither a library nor a provider under [options]")
    wanted = str(options.get("device_type", "")).upper()
    found = [device for device in offered if str(device.ep_name) in names and wanted in ("", _kind(device))]
    if not found:
        have = ", ".join(f"{device.ep_name} on {_kind(device)}" for device in offered)
        raise UsageError(
            f"{library or options.get('provider')} finds no device of its own on this machine"
            f"{f' of type {wanted}' if wanted else ''}; ONNX Runtime offers {have}"
        )
    return [device for device in found if device.ep_name == found[0].ep_name][:1]


def _kind(device: Any) -> str:
    """``CPU``, ``GPU`` or ``NPU``."""
    return str(device.device.type).rsplit(".", maxsplit=1)[-1]


_REGISTERED: dict[str, set[str]] = {}
"""Path of a library -> names of the providers that it brought."""


def _library(name: str) -> str:
    """The path of a provider's library. Raises `UsageError`."""
    if re.search(r"\.(so[.\d]*|dll|dylib)$", name):
        if not Path(name).is_file():
            raise UsageError(f"there is no library {name}")
        return name
    try:
        return str(importlib.import_module(name).get_library_path())
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise UsageError(f"{name} is neither a library's path nor a package that has one: {error}") from error
