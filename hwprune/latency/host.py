"""The place where the measuring process runs: on this machine, or on another through plain ssh and scp."""

from __future__ import annotations

import abc
import contextlib
import copy
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import final

from hwprune.common.environment import as_the_user_has_it
from hwprune.errors import RunError, UsageError

_URL = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*)(?::(?P<port>\d+))?(?P<path>/.*)?"
)
"""Names begin with a letter or digit, so that none can pass for an option of ssh."""
_COPY_S = 600.0


class Host(abc.ABC):
    """Starts the process and brings files to it and back."""

    label: str

    @abc.abstractmethod
    def place(self) -> Host:
        """A host for one process: what files it has been brought is its own; the connection is shared."""

    @abc.abstractmethod
    def command(self, threads: int, memory: int) -> tuple[list[str], dict[str, str]]:
        """The command line that starts the worker, and its environment."""

    @abc.abstractmethod
    def put(self, path: Path) -> str:
        """A file's name where the worker is, with what lies beside it under the same name (external weights)."""

    @abc.abstractmethod
    def out(self, path: Path) -> str:
        """A name where the worker is for a file that will be fetched to ``path``."""

    @abc.abstractmethod
    def get(self, remote: str, path: Path) -> None:
        """Fetch a file that the worker wrote."""

    @abc.abstractmethod
    def forget(self, remote: str) -> bool:
        """A file that was put is not needed any more. Should the worker delete it?"""

    @abc.abstractmethod
    def started(self, ask_folder: Callable[[], str]) -> None:
        """A new worker is there; what the old one kept has gone with it."""

    @abc.abstractmethod
    def why_dead(self, code: int, last: str) -> str | None:
        """A better sentence than "ended with exit code", or None."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what it holds."""


@final
class LocalHost(Host):
    """This machine."""

    label = "this machine"

    def place(self) -> Host:
        return self

    def command(self, threads: int, memory: int) -> tuple[list[str], dict[str, str]]:
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "HWPRUNE_MEMORY_LIMIT": str(memory),
        }
        as_the_user_has_it(environment)
        return [sys.executable, "-P", "-m", "hwprune.latency.worker"], environment

    def put(self, path: Path) -> str:
        return str(path)

    def out(self, path: Path) -> str:
        return str(path)

    def get(self, remote: str, path: Path) -> None:
        pass

    def forget(self, remote: str) -> bool:
        return False

    def started(self, ask_folder: Callable[[], str]) -> None:
        pass

    def why_dead(self, code: int, last: str) -> str | None:
        return None

    def close(self) -> None:
        pass


@final
class Ssh(Host):
    """Another machine: ``ssh://[user@]host[:port][/path/to/hwprune]``.

    The worker is that machine's own hwprune (of the same version), talked to through ssh's stdin and stdout; files go by scp.
    Nothing listens, no password is asked for (keys only), and no text of the user's reaches a remote shell: file names
    there are digests, and the path of hwprune is quoted.
    """

    def __init__(self, url: str) -> None:
        """Raises `UsageError` for what is no such URL, or without ssh."""
        match = _URL.fullmatch(url)
        if match is None:
            raise UsageError(f"{url!r} is not an address: write ssh://user@host, ssh://host:port or ssh://host/path/to/hwprune")
        if shutil.which("ssh") is None or shutil.which("scp") is None:
            raise UsageError("ssh and scp are not installed on this machine")
        self._host = match["host"]
        self._login = f"{match['user']}@{match['host']}" if match["user"] else match["host"]
        self._port = match["port"]
        self._program = match["path"] or "hwprune"
        self.label = url
        self._folder = ""
        self._known: dict[str, str] = {}
        self._control = tempfile.mkdtemp(prefix="hwp-ssh-")

    def place(self) -> Host:
        place = copy.copy(self)
        place._folder, place._known = "", {}
        return place

    def _options(self) -> list[str]:
        settings = ["BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4"]
        if len(self._control) < 80:  # a socket's path is short; without one each copy connects anew
            settings += ["ControlMaster=auto", f"ControlPath={self._control}/c", "ControlPersist=60"]
        options = [text for setting in settings for text in ("-o", setting)]
        if extra := os.environ.get("HWPRUNE_SSH_CONFIG"):
            options += ["-F", extra]
        return options

    def command(self, threads: int, memory: int) -> tuple[list[str], dict[str, str]]:
        port = ["-p", self._port] if self._port else []
        numbers = f"OMP_NUM_THREADS={int(threads)} OPENBLAS_NUM_THREADS={int(threads)} HWPRUNE_MEMORY_LIMIT={int(memory)}"
        remote = f"exec env {numbers} {shlex.quote(self._program)} bench-worker"
        return ["ssh", "-T", *self._options(), *port, self._login, remote], dict(os.environ)

    def started(self, ask_folder: Callable[[], str]) -> None:
        self._folder = ask_folder()
        self._known.clear()

    def put(self, path: Path) -> str:
        files = sorted(path.parent.glob(path.name + "*"))
        state = "|".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
        if state not in self._known:
            digest = hashlib.sha256(state.encode()).hexdigest()[:24]
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / digest  # files keep their names inside: external weights are found by them
                folder.mkdir()
                for file in files:
                    (folder / file.name).symlink_to(file.resolve())
                self._copy(["-r", str(folder), f"{self._login}:{self._folder}/"])
            self._known[state] = f"{self._folder}/{digest}/{path.name}"
        return self._known[state]

    def out(self, path: Path) -> str:
        return f"{self._folder}/{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.out"

    def forget(self, remote: str) -> bool:
        self._known = {state: place for state, place in self._known.items() if place != remote}
        return True

    def get(self, remote: str, path: Path) -> None:
        # scp takes a relative path with a colon for another machine's, and one with a leading dash for an option.
        self._copy([f"{self._login}:{remote}", str(path.absolute())])

    def _copy(self, arguments: list[str]) -> None:
        port = ["-P", self._port] if self._port else []
        try:
            done = subprocess.run(
                ["scp", "-q", *self._options(), *port, *arguments], capture_output=True, text=True, timeout=_COPY_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"copying to or from {self._login} took longer than {_COPY_S:g} s") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RunError(f"can't copy to or from {self._login}: {last}")

    def why_dead(self, code: int, last: str) -> str | None:
        if code == 255:
            return f"{self._login} can't be reached by ssh, or the connection broke: {last or 'no reason given'}"
        if code in (126, 127):
            return (
                f"{self._login} has no hwprune at {self._program!r}: install it there (the same version), "
                "or name its path: ssh://user@host/path/to/hwprune"
            )
        if code == 2 and "bench-worker" in last:
            return f"the hwprune on {self._login} is another version, which has no bench-worker"
        return None

    def close(self) -> None:
        port = ["-p", self._port] if self._port else []
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["ssh", *self._options(), *port, "-O", "exit", self._login], capture_output=True, timeout=10, check=False
            )
        shutil.rmtree(self._control, ignore_errors=True)


def host(url: str | None) -> Host:
    """This machine, or the one at an ssh:// address."""
    return Ssh(url) if url else LocalHost()
