"""The measuring process: a real runtime, and every way in which a candidate can take it down."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import hwprune
from hwprune.errors import CandidateFailure, RunError, UnknownNameError, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.fresh import remeasure
from hwprune.latency.paired import Settings
from hwprune.latency.worker_process import BenchLimits
from hwprune.records import target as targets
from hwprune.workload.workload import Workload
from tests.conftest import tiny_workload

FAST = Settings(limit_s=0.1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Dense model, a pruned one, and samples."""
    from hwprune.workload import sample_files

    folder = tmp_path_factory.mktemp("bench")
    tiny = tiny_workload()
    hwprune.prune(tiny, hwprune.Recipe()).export(folder / "dense")
    hwprune.prune(tiny, hwprune.uniform_recipe(tiny, "channel", 0.75)).export(folder / "small")
    sample_files.write_samples(tiny, "validation", folder / "samples.npz")
    assert isinstance(tiny, Workload)
    return folder


@pytest.fixture
def cpu():
    return targets.load("cpu")


def test_runs_and_times_a_model(files, cpu, tmp_path):
    from hwprune.workload import scoring

    with Bench(cpu) as bench:
        bench.load("dense", files / "dense" / "model.onnx", keep=True)
        bench.load("small", files / "small" / "model.onnx")
        bench.run("small", files / "samples.npz", tmp_path / "out.npz")
        outputs = scoring.read_outputs(tmp_path / "out.npz")
        assert [batch[0].shape for batch in outputs] == [torch.Size([20, 4])] * 3
        result = bench.pair("small", "dense", files / "samples.npz", FAST)
        assert result.clock == "thread_cpu"
        assert result.speedup.samples >= 8
        assert result.speedup.ci_low <= result.speedup.value <= result.speedup.ci_high
        assert result.latency.value > 0


def test_unreadable_model_is_a_failed_candidate(files, cpu, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with Bench(cpu) as bench, pytest.raises(CandidateFailure, match="run: "):
        bench.load("x", tmp_path / "bad.onnx")


def test_wrong_input_shape_is_a_failed_candidate(files, cpu, tmp_path):
    np.savez(tmp_path / "wide.npz", **{"00000.input0": np.zeros((1, 7, 8, 8), np.float32)})
    with Bench(cpu) as bench:
        bench.load("dense", files / "dense" / "model.onnx")
        with pytest.raises(CandidateFailure, match="(?i)invalid"):
            bench.run("dense", tmp_path / "wide.npz", tmp_path / "out.npz")
        bench.run("dense", files / "samples.npz", tmp_path / "out.npz")  # the process lives on


def test_native_crash_is_a_failed_candidate_and_the_dense_model_comes_back(files, cpu, tmp_path):
    with Bench(cpu) as bench:
        bench.load("dense", files / "dense" / "model.onnx", keep=True)
        threading.Timer(0.3, lambda: os.kill(bench._process._process.pid, signal.SIGSEGV)).start()
        with pytest.raises(CandidateFailure, match="measure: .*SIGSEGV"):
            bench.pair("dense", "dense", files / "samples.npz", Settings(limit_s=20, half_width=0))
        bench.run("dense", files / "samples.npz", tmp_path / "out.npz")


def test_candidate_that_takes_too_long_is_ended(files, cpu):
    with Bench(cpu, BenchLimits(seconds=3.0)) as bench:
        bench.load("dense", files / "dense" / "model.onnx", keep=True)
        with pytest.raises(CandidateFailure, match="longer than 3 s"):
            bench.pair("dense", "dense", files / "samples.npz", Settings(limit_s=60, half_width=0, most_quads=1024, block_s=0.2))
        bench.load("dense", files / "dense" / "model.onnx")


def test_candidate_that_takes_too_much_memory_fails(files, cpu, tmp_path):
    huge = tmp_path / "huge.npz"
    np.savez(huge, **{"00000.input0": np.zeros((60000, 1, 8, 8), np.float32)})  # 64 channels: a GB of activations
    with Bench(cpu, BenchLimits(memory=500_000_000)) as bench:
        bench.load("dense", files / "dense" / "model.onnx", keep=True)
        with pytest.raises(CandidateFailure, match=r"run: .*(memory|allocate|bad_alloc)"):
            bench.run("dense", huge, tmp_path / "out.npz")
        bench.run("dense", files / "samples.npz", tmp_path / "out.npz")


def test_dense_model_that_is_gone_ends_the_run(files, cpu, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes((files / "dense" / "model.onnx").read_bytes())
    with Bench(cpu) as bench:
        bench.load("dense", model, keep=True)
        model.unlink()
        bench._process._process.kill()
        bench._process._process.wait()
        with pytest.raises(RunError, match="dense model"):
            bench.run("dense", files / "samples.npz", tmp_path / "out.npz")


def test_worker_ends_with_its_parent(files, cpu):
    with Bench(cpu) as bench:
        bench.load("dense", files / "dense" / "model.onnx")
        pid = bench._process._process.pid
        bench._process._process.stdin.close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and bench._process._process.poll() is None:
            time.sleep(0.05)
        assert bench._process._process.poll() == 0, pid
        bench._process._process.stdin = None


def test_fresh_processes_give_an_interval_and_drop_what_fails(files, cpu, tmp_path):
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"")
    models = {"small": files / "small" / "model.onnx", "broken": broken}
    found = remeasure(models, files / "dense" / "model.onnx", files / "samples.npz", lambda: Bench(cpu), FAST, processes=3)
    assert set(found) == {"dense", "small"}
    latency, speedup = found["small"]
    values = speedup.conditions["speedups"]
    assert len(values) == 3
    assert speedup.value == pytest.approx(sorted(values)[1], abs=1e-4)
    assert (speedup.ci_low, speedup.ci_high) == pytest.approx((min(values), max(values)), abs=1e-4)
    assert latency.value * speedup.value == pytest.approx(found["dense"][0].value * found["dense"][1].value)


def test_every_profile_loads():
    for name in targets.names():
        target = targets.load(name)
        assert target.name == name
        assert target.why_not("channel") is None
        assert target.why_not("unstructured")
        assert target.multiple("avx512") in (1, 4, 8, 16, 32)


def test_what_a_target_executes():
    assert targets.load("a100").why_not("2:4") is None
    assert "2:4 only" in targets.load("a100").why_not("4:8")
    assert "sparse" in targets.load("cpu").why_not("2:4")
    assert "Turing" in targets.load("t4").why_not("2:4")


def test_profile_faults_are_told_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('schema = 2\ndescription = "x"\ndevice = "tpu"\nruntime = "r"\nprecision = "fp32"\nexecute = []\n')
    with pytest.raises(UsageError) as caught:
        targets.load(str(path))
    text = str(caught.value)
    for part in ("schema", "device", "executes", "channel_multiple", "did you mean 'executes'"):
        assert part in text


def test_unknown_target_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"a1000.*a100"):
        targets.load("a1000")


def test_options_are_part_of_the_identity(cpu):
    from hwprune.latency import fingerprint

    assert fingerprint.identity(cpu) == fingerprint.identity(cpu)
    assert fingerprint.identity(cpu) != fingerprint.identity(replace(cpu, threads=2))
