"""ONNX Runtime Web: WebAssembly in Node, the engine that runs models in browsers. It works in a process of its own."""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.common.files import cache_folder
from hwprune.runtimes import conversion
from hwprune.runtimes.base import PROCESS, Arrays, Runner, RuntimeSettings
from hwprune.runtimes.conversion import Converted
from hwprune.runtimes.fixed_sizes import ConvertedRuntime, FixedSizeRunner

PACKAGE, WHERE = "onnxruntime-web", "HWPRUNE_NODE_MODULES"
ENTRY = "dist/ort.wasm.min.mjs"


class NodeEngine:
    """The Node process with the engine; it ends when its parent closes the pipe, or, after the run at hand, when that dies."""

    def __init__(self, package: Path) -> None:
        script = Path(__file__).with_suffix(".mjs")
        self._process = subprocess.Popen(
            ["node", str(script), (package / ENTRY).as_uri()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Is the process there?"""
        return self._process.poll() is None

    def ask(self, operation: str, **values: Any) -> dict[str, Any]:
        """Raises RuntimeError with what the engine says, or that it died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps({"op": operation, **values}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"onnxruntime-web's process died (exit code {self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"onnxruntime-web: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


_ENGINES: list[NodeEngine] = []


def _engine(package: Path) -> NodeEngine:
    """The engine. All models share it: two processes are optimised at different moments, and compare badly (between sessions of
    the dense model against copies of itself: 2.6 % with a process each, 0.5 % with one).
    """
    if _ENGINES and not _ENGINES[-1].alive:
        _ENGINES.pop().close()
    if not _ENGINES:
        _ENGINES.append(NodeEngine(package))
        atexit.register(_ENGINES[-1].close)
    return _ENGINES[-1]


@final
class OnnxRuntimeWebRunner(FixedSizeRunner):
    """A session in the engine; it is released with this object."""

    def __init__(self, source: Path, made: Converted, engine: NodeEngine) -> None:
        super().__init__(made.signature)
        self._engine, self._session = engine, -1
        weights = [str(path.relative_to(source.parent)) for path in conversion.parts_of(source)[1:]]
        loaded = engine.ask("load", path=str(source.absolute()), weights=weights)
        self._session = loaded["session"]
        if len(loaded["inputs"]) != len(made.signature.inputs):
            raise ValueError(f"onnxruntime-web reads {len(loaded['inputs'])} inputs, the model has {len(made.signature.inputs)}")

    def __del__(self) -> None:
        if getattr(self, "_session", -1) >= 0 and self._engine.alive:
            with contextlib.suppress(RuntimeError, ValueError):  # the interpreter may be shutting down
                self._engine.ask("drop", session=self._session)

    def _infer(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        outputs = self._engine.ask("run", session=self._session, inputs=[_sent(array) for array in arrays])["outputs"]
        return [np.frombuffer(base64.b64decode(x["data"]), dtype=x["type"]).reshape(x["dims"]).copy() for x in outputs]

    def _bound(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Callable[[], object]:
        number = self._engine.ask("bind", session=self._session, inputs=[_sent(array) for array in arrays])["number"]
        return lambda: self._engine.ask("time", number=number, runs=1)

    def timer(self, inputs: Arrays) -> Callable[[int], float] | None:
        """Node's own seconds: neither the pipe nor the text counts."""
        given = [_sent(array) for array in self._fitting(inputs)]
        number = self._engine.ask("bind", session=self._session, inputs=given)["number"]
        return lambda runs: float(self._engine.ask("time", number=number, runs=runs)["seconds"])


def _sent(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"type": array.dtype.name, "dims": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


@final
class OnnxRuntimeWeb(ConvertedRuntime):
    """One thread, whatever the profile asks for: in Node, the engine can't start others. The clock is its process's CPU time."""

    name = "onnxruntime-web"
    description = "ONNX Runtime Web (WebAssembly) in Node, as in browsers"
    kind = "onnx"
    in_process = False

    def missing(self) -> str | None:
        if shutil.which("node") is None:
            return "Node.js (version 20 or newer) is not installed"
        if _package() is None:
            return f"{PACKAGE} is not installed: npm install --ignore-scripts --prefix {cache_folder() / 'node'} {PACKAGE}"
        return None

    def version(self) -> str:
        package = _package()
        if package is None:
            return "unknown"
        return f"{PACKAGE} {json.loads((package / 'package.json').read_text(encoding='utf-8'))['version']}"

    def clock(self, settings: RuntimeSettings) -> str:
        return PROCESS

    def open(self, source: Path, made: Converted, settings: RuntimeSettings) -> Runner:
        package = _package()
        assert package is not None
        return OnnxRuntimeWebRunner(source, made, _engine(package))


def _package() -> Path | None:
    """Where npm put it: ``HWPRUNE_NODE_MODULES``, the environment's own share, or the user's cache."""
    named = os.environ.get(WHERE)
    places = [Path(named)] if named else [Path(sys.prefix) / "share/hwprune/node_modules", cache_folder() / "node/node_modules"]
    return next((place / PACKAGE for place in places if (place / PACKAGE / ENTRY).is_file()), None)
