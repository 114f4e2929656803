"""The table of measured latencies: small pieces of models by their signature, and whole models; on disk, for one identity.

A folder holds ``table.csv`` (a row a segment), ``models.csv`` (a row a whole-model measurement) and ``fingerprint.json`` (whose
numbers these are). It is what `hwprune probe --table` writes and what `--table` reads on another machine.

One file because measuring, merging and storing share one rule: numbers of two sessions are compared only in the unit of
their own reference.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwprune.common.files import csv_text, dump_json, read_json, sha256, write_atomic
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.latency import fingerprint
from hwprune.latency.bench import Bench
from hwprune.latency.micro import ROUNDS
from hwprune.latency.segments import Segment
from hwprune.latency.table_files import file_lock, read_counts, read_number, read_rows, shared_lock
from hwprune.latency.worker import OWN_FAILED

SCHEMA = 1
LOCK = ".lock"
"""Name of the file whose lock a writer holds alone and readers share: the three files of a table belong together."""
DENSE = "dense"
GROUP = 12
"""CutSegments that are timed in turn."""

FEATURES = (
    "macs", "bytes", "weights", "in", "out", "batches", "rows", "columns", "inner", "columns_mod_16", "columns_mod_8",
    "inner_mod_16", "nodes", "sums", "activations", "moves",
)  # fmt: skip
COLUMNS = ("signature", "anchor", "family", "seconds", "half_width_s", *FEATURES)
MODEL_COLUMNS = ("network", "model", "seconds", "half_width_s", "segments")


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured segment: seconds of a run without the cost of the call, and the half-width of the 95 % interval."""

    signature: str
    anchor: str
    family: str
    seconds: float
    half_width_s: float
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Whole:
    """One measured model: ``segments`` are signatures with how often they occur, ``network`` names the dense model."""

    network: str
    model: str
    seconds: float
    half_width_s: float
    segments: Mapping[str, int]


@dataclass(slots=True)
class LatencyTable:
    """All that was measured under one identity. ``folder`` None: only in memory."""

    identity: Mapping[str, Any]
    folder: Path | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    models: dict[tuple[str, str], Whole] = field(default_factory=dict)
    reference_s: dict[str, float] = field(default_factory=dict)
    """Seconds of the reference by the type that it computes in: the unit of all entries of that type."""
    errors: dict[str, str] = field(default_factory=dict)
    """Segments that the runtime could not run alone, and why."""
    version: int = field(default=0, init=False, compare=False)
    """How often `entries` or `models` have changed since the table was made or read: what was fitted on it looks here."""

    # -- on disk -----------------------------------------------------------------------------

    @classmethod
    def read(cls, folder: Path, identity: Mapping[str, Any] | None = None) -> LatencyTable:
        """A stored table.

        Raises:
            UsageError: there is none, it has faults (all are told), or it is another identity's.
        """
        lock = folder / LOCK
        if not lock.exists():  # a copy, in which nobody has measured yet; unless the first writer begins just now
            try:
                table = cls._read_files(folder, identity)
            except UsageError:
                if not lock.exists():
                    raise
            else:
                if not lock.exists():
                    return table
        with shared_lock(lock):
            return cls._read_files(folder, identity)

    @classmethod
    def _read_files(cls, folder: Path, identity: Mapping[str, Any] | None) -> LatencyTable:
        """The table of a folder whose lock the caller holds. Raises `UsageError`."""
        path = folder / "fingerprint.json"
        if not path.is_file() or not (folder / "table.csv").is_file():
            raise UsageError(
                f"{folder} holds no latency table (table.csv and fingerprint.json, as `hwprune probe --table` writes)"
            )
        data = read_json(path)
        named = isinstance(data, dict) and isinstance(data.get("identity"), dict) and data["identity"].get("device")
        if not named or data.get("schema") != SCHEMA:
            raise UsageError(f"{path} is not the fingerprint of a latency table of schema {SCHEMA}")
        reference = data.get("reference_s")
        references = reference if isinstance(reference, dict) else {}
        if not references or not all(isinstance(v, (int, float)) and v > 0 for v in references.values()):
            raise UsageError(f"{path}: reference_s must map types to numbers > 0, got {reference!r}")
        if identity is not None and data["identity"] != dict(identity):
            differs = [
                f"{k}: {data['identity'].get(k)!r} in the table, {v!r} here"
                for k, v in identity.items()
                if data["identity"].get(k) != v
            ]
            raise UsageError(
                f"{folder} was measured on another device or version; its numbers can't be mixed with these:", differs
            )
        table = cls(data["identity"], folder, reference_s={str(k): float(v) for k, v in references.items()})
        faults: list[str] = []
        for row in read_rows(folder / "table.csv", COLUMNS, faults):
            features = {name: read_number(row, name, faults) for name in FEATURES}
            seconds, half = read_number(row, "seconds", faults, positive=True), read_number(row, "half_width_s", faults)
            table.entries[row["signature"]] = Entry(row["signature"], row["anchor"], row["family"], seconds, half, features)
        if (folder / "models.csv").is_file():
            for row in read_rows(folder / "models.csv", MODEL_COLUMNS, faults):
                seconds, half = read_number(row, "seconds", faults, positive=True), read_number(row, "half_width_s", faults)
                counts = read_counts(row["segments"], faults)
                table.models[row["network"], row["model"]] = Whole(row["network"], row["model"], seconds, half, counts)
        if faults:
            raise UsageError(f"{folder} is not a sound latency table:", faults[:20])
        return table

    def digests(self) -> list[str]:
        """SHA-256 of the table's files on disk."""
        assert self.folder is not None
        return [sha256(path) for name in ("table.csv", "models.csv") if (path := self.folder / name).is_file()]

    @classmethod
    def stored(cls, root: Path, identity: Mapping[str, Any]) -> LatencyTable:
        """The table of an identity under ``root``, made if there is none; one that can't be read is begun anew."""
        folder = root / fingerprint.digest(identity)
        if not (folder / "fingerprint.json").exists():
            return cls(identity, folder)
        try:
            return cls.read(folder, identity)
        except UsageError:
            damaged = folder.with_name(f"{folder.name}-damaged-{int(time.time())}")
            folder.rename(damaged)  # begun anew, but nothing is thrown away
            return cls(identity, folder)

    def write(self) -> None:
        """Store what is new, together with what other processes stored meanwhile."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / LOCK):
            try:
                there = LatencyTable._read_files(self.folder, self.identity)
            except UsageError:
                there = None
            if there is not None:
                size = len(self.entries) + len(self.models)
                for kind, seconds in there.reference_s.items():
                    self.reference_s.setdefault(kind, seconds)
                for signature, entry in there.entries.items():  # theirs are in units of their own reference
                    self.entries.setdefault(signature, _scaled(entry, self._unit(there)))
                for key, whole in there.models.items():
                    scale = self._whole_scale(there, key[0])
                    self.models.setdefault(
                        key, replace(whole, seconds=whole.seconds * scale, half_width_s=whole.half_width_s * scale)
                    )
                self.version += size != len(self.entries) + len(self.models)
            self._write_files(self.folder)

    def _unit(self, there: LatencyTable) -> float:
        """This table's seconds over another's of the same identity: a machine is slower in one hour than in the next."""
        shared = [kind for kind in self.reference_s if kind in there.reference_s]
        return self.reference_s[shared[0]] / there.reference_s[shared[0]] if shared else 1.0

    def _whole_scale(self, there: LatencyTable, network: str) -> float:
        """Whole models are ratios to the network's dense model of the same session."""
        dense, stored = self.models.get((network, DENSE)), there.models.get((network, DENSE))
        return dense.seconds / stored.seconds if dense is not None and stored is not None else 1.0

    def _write_files(self, folder: Path) -> None:
        rows = []
        for entry in sorted(self.entries.values(), key=lambda e: (e.anchor, e.family, e.seconds)):
            row: dict[str, Any] = {"signature": entry.signature, "anchor": entry.anchor, "family": entry.family}
            row |= {"seconds": f"{entry.seconds:.6g}", "half_width_s": f"{entry.half_width_s:.3g}"}
            rows.append(
                row
                | {
                    name: f"{entry.features[name]:g}" if entry.features[name] < 1e6 else int(entry.features[name])
                    for name in FEATURES
                }
            )
        write_atomic(folder / "table.csv", csv_text(COLUMNS, rows))
        wholes = [
            {"network": w.network, "model": w.model, "seconds": f"{w.seconds:.6g}", "half_width_s": f"{w.half_width_s:.3g}",
             "segments": " ".join(f"{signature}*{count}" for signature, count in w.segments.items())}
            for w in self.models.values()
        ]  # fmt: skip
        write_atomic(folder / "models.csv", csv_text(MODEL_COLUMNS, wholes))
        data = {"schema": SCHEMA, "identity": dict(self.identity), "reference_s": dict(self.reference_s), "segments": len(rows)}
        write_atomic(folder / "fingerprint.json", dump_json(data))

    def copy_to(self, folder: Path) -> None:
        """Write it into another folder. Raises `UsageError` if that holds another table."""
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / LOCK):
            if (folder / "fingerprint.json").exists():
                LatencyTable._read_files(folder, self.identity)  # only ever replaced by one of the same identity
            self._write_files(folder)

    # -- measuring ---------------------------------------------------------------------------

    def missing(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those that were never measured, each signature once."""
        unmeasured = {s.signature: s for s in segments if s.signature not in self.entries and s.signature not in self.errors}
        return list(unmeasured.values())

    def fill(
        self,
        bench: Bench,
        segments: Sequence[Segment],
        step: Callable[[int, int], None] | None = None,
        rounds: int = ROUNDS,
    ) -> int:
        """Measure what is missing; returns how many were. A piece that can't run alone goes to `errors`.

        Raises:
            RunError: the runtime can't run even the reference.
        """
        wanted = self.missing(segments)
        total, done = len(wanted), 0
        for start in range(0, total, GROUP):
            self._fill_group(bench, wanted[start : start + GROUP], rounds)
            done = min(total, start + GROUP)
            if start // GROUP % 8 == 7:
                self.write()  # a kill loses seconds, not a staircase
            if step is not None:
                step(done, total)
        if wanted:
            self.write()
        return total - sum(segment.signature in self.errors for segment in wanted)

    def _fill_group(self, bench: Bench, group: Sequence[Segment], rounds: int) -> None:
        kind = _float_kind(group)
        with tempfile.TemporaryDirectory(prefix="hwprune-micro-") as name:
            folder = Path(name)
            for piece in group:
                onnx.save(piece.model(), str(folder / f"{piece.signature}.onnx"))
                save_inputs(folder / f"{piece.signature}.npz", piece.samples())
            _write_reference(folder, kind)
            try:
                result = bench.micro(folder, [piece.signature for piece in group], rounds)
            except CandidateFailure as failure:
                if OWN_FAILED in failure.reason:
                    raise RunError(f"nothing can be timed on this runtime: {failure.reason}") from failure
                if len(group) > 1:  # one of them took the process down: find out which
                    for piece in group:
                        self._fill_group(bench, [piece], rounds)
                    return
                self.errors[group[0].signature] = failure.reason
                return
        name = onnx.TensorProto.DataType.Name(kind)
        unit = self.reference_s.setdefault(name, result["reference_s"])
        self.errors.update(result["errors"])
        for piece in group:
            if piece.signature in result["pieces"]:
                ratio, half = result["pieces"][piece.signature]
                if not (math.isfinite(ratio) and ratio > 0):
                    raise RunError(f"timing {piece.name} gave {ratio}")
                seconds, half_width = ratio * unit, half * unit
                self.entries[piece.signature] = Entry(
                    piece.signature, piece.anchor, piece.family, seconds, half_width, piece.features()
                )  # fmt: skip
                self.version += 1

    def observe(self, network: str, model: str, segments: Sequence[Segment], seconds: float, half_width_s: float) -> None:
        """Keep a whole-model measurement; ``seconds`` is dense latency / speedup.

        The network's dense model (``model`` is `DENSE`) comes first in a session. If the table has an older one,
        later measurements of the session must be given in its unit: see `dense_s`.
        """
        counts = Counter(segment.signature for segment in segments)
        whole = Whole(network, model, seconds, half_width_s, counts)
        self.version += self.models.get((network, model)) != whole
        self.models[network, model] = whole

    def dense_s(self, network: str, measured: float) -> float:
        """The dense latency that the network's whole models are ratios to: the table's own if it has one, else ``measured``."""
        dense = self.models.get((network, DENSE))
        return dense.seconds if dense is not None else measured


def _scaled(entry: Entry, scale: float) -> Entry:
    return Entry(entry.signature, entry.anchor, entry.family, entry.seconds * scale, entry.half_width_s * scale, entry.features)


def _float_kind(group: Sequence[Segment]) -> int:
    """The float type that the pieces compute in; the reference uses the same."""
    kinds = Counter(t.kind for piece in group for t in (*piece.weights, *(piece.tensors[n] for n in piece.outputs)))
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return next((kind for kind, _ in kinds.most_common() if kind in floats), onnx.TensorProto.FLOAT)


def _write_reference(folder: Path, kind: int) -> None:
    """A convolution that takes tens of microseconds on a CPU core, and a call that does nothing."""
    generator = np.random.default_rng(0)
    numpy_kind = onnx.helper.tensor_dtype_to_np_dtype(kind)
    weight = (generator.standard_normal((32, 32, 3, 3)) / 17).astype(numpy_kind)
    image = generator.standard_normal((1, 32, 16, 16)).astype(numpy_kind)
    tensor = onnx.helper.make_tensor_value_info
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graphs = {
        "reference": (conv, image, [onnx.numpy_helper.from_array(weight, "w")]),
        "nothing": (onnx.helper.make_node("Identity", ["x"], ["y"]), image[:, :1, :1, :1], []),
        "next-to-nothing": (onnx.helper.make_node("Relu", ["x"], ["y"]), image[:, :1, :1, :1], []),
    }
    for name, (node, x, stored) in graphs.items():
        graph = onnx.helper.make_graph([node], name, [tensor("x", kind, x.shape)], [tensor("y", kind, x.shape)], stored)
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10),
            str(folder / f"{name}.onnx"),
        )
        save_inputs(folder / f"{name}.npz", [x])


def save_inputs(path: Path, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    """One batch of a samples file, as the worker reads it."""
    named = {f"00000.input{position}": array for position, array in enumerate(arrays)}
    np.savez(path, allow_pickle=False, **named or {"00000.input0": np.zeros(1, np.float32)})
