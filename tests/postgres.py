"""A PostgreSQL server of our own on loopback, in a temporary folder; stopped and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def programs() -> Path | None:
    """Folder of initdb and pg_ctl, or None."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database."""
    binaries = programs()
    assert binaries is not None
    with tempfile.TemporaryDirectory(prefix="hwprune-postgres-", dir="/tmp") as name:
        folder, user = Path(name), None
        if os.getuid() == 0:  # the server refuses to run as root
            user = "postgres"
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def run(*words: str) -> None:
            subprocess.run(
                words, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
            )

        data = str(folder / "data")
        run(str(binaries / "initdb"), "-D", data, "-U", "hwprune", "-A", "trust", "--no-sync")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off -c max_connections=60"
        run(str(binaries / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://hwprune@127.0.0.1:{port}/postgres"
        finally:
            run(str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
