"""The process that converts, seen from those who ask: started, asked, ended. `hwprune.deploy.converters` is what runs in it."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START = """import importlib.util, sys
folder, parent = sys.argv[1:]
spec = importlib.util.spec_from_file_location("hwprune", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["hwprune"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from hwprune.deploy import converters
converters.main(int(parent))
"""
"""How the converter's process begins: `hwprune.deploy.converters`, of the hwprune that asks."""


class ConversionError(RuntimeError):
    """A model that a converter refuses.

    Attributes:
        refused: ``operator`` and ``name`` of the nodes that it does not know, as far as it names them.
    """

    def __init__(self, text: str, refused: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(text)
        self.refused = [dict(one) for one in refused]


class ConverterProcess:
    """One process that converts, kept because its libraries take seconds to import; started again after a crash."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """One conversion. Raises `ConversionError` if the process dies or takes too long."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            return self._answer(process, time.monotonic() + limit_s, limit_s)
        except BaseException:  # a late answer would be taken for the next one's
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        self._process, self._buffer = None, b""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # Another environment's Python finds this hwprune, and nothing else of what lies beside it.
            package = str(Path(__file__).resolve().parents[1])
            command = [self._python, "-P", "-c", START, package, str(os.getpid())]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], deadline: float, limit_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ConversionError(f"the converter was ended after {limit_s:g} s")
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise ConversionError(f"the converter died (exit code {process.wait()})")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
