"""Measuring on another machine: a real sshd on loopback, and everything that can be wrong with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hwprune
from hwprune.cli.main import main
from hwprune.errors import RunError, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.host import Ssh, host
from hwprune.latency.paired import Settings
from hwprune.latency.worker_process import BenchLimits
from hwprune.records import target as targets
from hwprune.workload import sample_files, scoring
from tests.conftest import tiny_workload

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
FAST = Settings(limit_s=0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, path of hwprune) of an sshd that only knows a key made for it."""
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    os.chmod(folder / "authorized", 0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nPidFile {folder}/pid\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\nPermitUserEnvironment no\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile {folder}/known\n  LogLevel ERROR\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    program = folder / "a folder" / "hwprune"  # a path that a shell would take apart
    program.parent.mkdir()
    root = Path(hwprune.__file__).parents[1]
    program.write_text(f"#!/bin/sh\nPYTHONPATH='{root}' exec '{sys.executable}' -m hwprune.cli.main \"$@\"\n")
    program.chmod(0o755)
    os.environ["HWPRUNE_SSH_CONFIG"] = str(folder / "ssh_config")
    yield f"ssh://127.0.0.1:{port}", str(program)
    del os.environ["HWPRUNE_SSH_CONFIG"]
    process.terminate()
    process.wait()


@pytest.fixture
def remote(server):
    made = Ssh(server[0] + server[1])
    yield made
    made.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny = tiny_workload()
    hwprune.prune(tiny, hwprune.Recipe()).export(folder / "dense")
    hwprune.prune(tiny, hwprune.uniform_recipe(tiny, "channel", 0.75)).export(folder / "small")
    sample_files.write_samples(tiny, "validation", folder / "samples.npz")
    return folder


def test_runs_measures_and_cleans_up_over_ssh(remote, files, tmp_path):
    cpu = targets.load("cpu")
    with Bench(cpu, host=remote) as bench, Bench(cpu) as here:
        assert bench.check()["missing"] == []
        assert bench.identity() == here.identity()
        bench.load("dense", files / "dense" / "model.onnx", keep=True)
        bench.load("small", files / "small" / "model.onnx")
        bench.run("small", files / "samples.npz", tmp_path / "there.npz")
        here.load("small", files / "small" / "model.onnx")
        here.run("small", files / "samples.npz", tmp_path / "here.npz")
        there, own = scoring.read_outputs(tmp_path / "there.npz"), scoring.read_outputs(tmp_path / "here.npz")
        assert all((a[0] == b[0]).all() for a, b in zip(there, own, strict=True))
        result = bench.pair("small", "dense", files / "samples.npz", FAST)
        assert result.speedup.ci_low <= result.ratio <= result.speedup.ci_high
        assert "load_average" in result.speedup.conditions["machine"]
        folder = Path(bench._host._folder)
        assert folder.is_dir()
    for _ in range(100):
        if not folder.exists():
            break
        time.sleep(0.05)
    assert not folder.exists()  # what was brought there goes with the process


def test_connection_that_breaks_is_an_error_and_the_next_command_starts_anew(remote, files):
    with Bench(targets.load("cpu"), BenchLimits(seconds=20), remote) as bench:
        bench.load("dense", files / "dense" / "model.onnx", keep=True)
        bench._process._process.kill()  # the ssh client dies: the wire is cut
        bench._process._process.wait()
        bench.load("small", files / "small" / "model.onnx")  # connects again and brings the dense model back
        assert bench.pair("small", "dense", files / "samples.npz", FAST).speedup.samples >= 8


def test_whole_search_with_the_other_machine_measuring(server, tmp_path):
    result = hwprune.search(tiny_workload("top1"), trials=2, out=tmp_path / "run", remote=server[0] + server[1])
    assert any(trial.measured for trial in result.trials)
    assert (tmp_path / "run" / "front.csv").is_file()
    assert f'remote = "{server[0]}' in (tmp_path / "run" / "job.toml").read_text()


def test_host_without_hwprune(server):
    machine = Ssh(server[0] + "/no/such/hwprune")
    try:
        with (
            Bench(targets.load("cpu"), host=machine) as bench,
            pytest.raises(RunError, match="has no hwprune at '/no/such/hwprune'"),
        ):
            bench.check()
    finally:
        machine.close()


def test_host_that_refuses_or_is_not_there(server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    for address in (f"ssh://127.0.0.1:{free}", "ssh://no-such-host.invalid"):
        machine = Ssh(address)
        try:
            with Bench(targets.load("cpu"), host=machine) as bench, pytest.raises(RunError, match="can't be reached by ssh"):
                bench.check()
        finally:
            machine.close()


def test_other_version_there_is_refused(remote, monkeypatch):
    monkeypatch.setattr("hwprune.latency.worker_process.VERSION", "0.0.1")
    with (
        Bench(targets.load("cpu"), host=remote) as bench,
        pytest.raises(UsageError, match=r"this is 0.0.1: both must be the same"),
    ):
        bench.check()


@pytest.mark.parametrize(
    "url",
    [
        "host",
        "ssh://",
        "ssh://-oProxyCommand=evil",
        "ssh://a@-b",
        "ssh://host:port",
        "http://host",
        "ssh://host name",
        "ssh://a b@host",
    ],
)
def test_what_is_no_address(url):
    with pytest.raises(UsageError, match="is not an address"):
        host(url)


def test_command_line_tells_in_one_line(server, capsys):
    assert main(["search", "demo:digits", "--remote", server[0] + "/no/such/hwprune", "--trials", "1"]) == 1
    error = capsys.readouterr().err
    assert "has no hwprune" in error
    assert "Traceback" not in error
    assert main(["search", "demo:digits", "--remote", "nonsense"]) == 2


def test_files_come_back_to_paths_that_scp_would_take_for_something_else(monkeypatch):
    machine, given = object.__new__(Ssh), []
    machine._login = "me@there"
    monkeypatch.setattr(machine, "_copy", given.extend)
    for name in ("a:b/out.npz", "-dash/out.npz"):
        machine.get("/there/out", Path(name))
    assert given == [word for name in ("a:b", "-dash") for word in ("me@there:/there/out", str(Path.cwd() / name / "out.npz"))]
