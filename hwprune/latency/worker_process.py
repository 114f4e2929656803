"""The process that measures, seen from the search: started, asked, survived. It answers one JSON line to each."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.latency.host import Host
from hwprune.version import VERSION

START_S = 120.0
"""Seconds that the process may take to start; more than any candidate's step on a loaded machine."""


@dataclass(frozen=True, slots=True)
class BenchLimits:
    """The most that one command of a candidate may take: wall seconds, and bytes of the worker's data (0: no limit)."""

    seconds: float = 120.0
    memory: int = 0


class WorkerProcess:
    """One process at a time on a host; after a crash another can be started.

    Args:
        threads: intra-op threads of the runtime.
    """

    def __init__(self, host: Host, threads: int, limits: BenchLimits) -> None:
        self._host, self._threads, self._limits = host, threads, limits
        self._process: subprocess.Popen[str] | None = None
        self._stderr: Any = None
        self._buffer = b""

    @property
    def alive(self) -> bool:
        """Is the process there?"""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start a process, in place of any that was there.

        Raises:
            UsageError: the host has another version of hwprune.
            CandidateFailure: it ended at once.
            RunError: it can't be started.
        """
        self.close()
        command, environment = self._host.command(self._threads, self._limits.memory)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._buffer = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for the search; it ends the worker itself
        )
        version = self._greeting()
        if version != VERSION:
            self.close()
            raise UsageError(f"{self._host.label} has hwprune {version}, this is {VERSION}: both must be the same")
        self._host.started(lambda: str(self.ask("run", "folder", {})["folder"]))

    def ask(self, stage: str, operation: str, arguments: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """Send a command; its answer.

        Args:
            stage: of the `CandidateFailure` if it fails.
            limit: seconds; default: those of the limits.
        """
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise CandidateFailure(stage, self._obituary()) from None
        answer = self._receive(stage, limit or self._limits.seconds)
        if "error" in answer:
            raise CandidateFailure(stage, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._stderr.close()
        self._process = None

    def _greeting(self) -> str:
        """The worker's version. What a login prints before is skipped."""
        for _ in range(1000):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return str(self._receive("run", START_S)["result"]["version"])
        self.close()
        raise RunError(f"{self._host.label} answers, but not as hwprune does")

    def _receive(self, stage: str, limit: float) -> dict[str, Any]:
        """The next answer line, or a `CandidateFailure` when time is up or the process died."""
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.close()
                    raise CandidateFailure(stage, f"took longer than {limit:g} s")
                chunk = os.read(pipe, 1 << 16)
                if not chunk:
                    raise CandidateFailure(stage, self._obituary())
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _obituary(self) -> str:
        """Why the process died; it is cleared away."""
        assert self._process is not None
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        if better := self._host.why_dead(code, lines[-1] if lines else ""):
            raise RunError(better)
        if code < 0:
            name = signal.Signals(-code).name
            text = f"the measuring process was killed by {name}"
            if -code == signal.SIGKILL:
                text += " (by the system, when memory ran out?)"
        else:
            text = f"the measuring process ended with exit code {code}"
        limit = f"; its memory limit is {self._limits.memory} bytes" if self._limits.memory else ""
        return f"{text}{limit}{': ' + lines[-1] if lines else ''}"
