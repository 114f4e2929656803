"""Fuzzing of every text file that hwprune reads: what is broken is told, and nothing else happens.

    python benchmarks/fuzz_files.py [--count 100000] [--seed 0] [--only job,record,...]

Valid files are mutated, as values (keys gone or renamed, other types, huge, negative and non-finite numbers, deep nesting, long and odd
texts) and as bytes (flips, cuts, insertions). A reader must return, or raise a `HwpruneError` that says what is wrong. Anything
else is a finding, printed with its seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT

from hwprune.common.files import dump_toml
from hwprune.deploy.reranking import rerank
from hwprune.deploy.verify import verify
from hwprune.errors import HwpruneError
from hwprune.latency.latency_table import FEATURES, Entry, LatencyTable, Whole
from hwprune.onnx_files import read_onnx, recipe_files
from hwprune.records import target
from hwprune.records.record import read_record
from hwprune.report.markdown import markdown
from hwprune.report.page import page_data
from hwprune.report.tables import front_csv, trials_csv
from hwprune.report.text import summary
from hwprune.searching.job import Job
from hwprune.searching.space import space_file

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, -(2**70), 1e308, -1e-320, float("nan"), float("inf"), "", " ", "a" * 5000, "\u202e\u0000\ud7ff", "../../etc/passwd", "1", [], {}, [[]], [None], {"a": {"b": []}},
]  # fmt: skip


def mutated(value: Any, draw: random.Random) -> Any:
    """One change somewhere in a JSON-like value."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        holder, key = value, None
        for _ in range(draw.randrange(1, 7)):
            inside = list(holder) if isinstance(holder, dict) else list(range(len(holder))) if isinstance(holder, list) else []
            if not inside:
                break
            parent, key = holder, draw.choice(inside)
            holder = holder[key]
        if key is None:
            return copy.deepcopy(draw.choice(ODD))
        kind = draw.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[str(key) + draw.choice(["x", "\n", ""])] = parent.pop(key)
        elif kind == 2:
            deep: Any = copy.deepcopy(draw.choice(ODD))
            for _ in range(draw.choice([1, 3, 60])):
                deep = [deep] if draw.random() < 0.5 else {"k": deep}
            parent[key] = deep
        else:
            parent[key] = copy.deepcopy(draw.choice(ODD))
    return value


def broken(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut out or put in."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(found) + 1)
        kind = draw.randrange(4)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[at : at + draw.choice([1, 10, 1000])]
        elif kind == 2:
            found[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice([1, 4, 50])))
        else:
            found = found[:at] or bytearray(b"x")
    return bytes(found)


class Readers:
    """One method a kind of file: writes it where it is looked for, and reads it."""

    def __init__(self, folder: Path, run: Path | None) -> None:
        self.folder, self.run = folder, run
        self.valid: dict[str, Any] = {
            "job": {"schema": 1, **{k: v for k, v in Job("demo:digits").to_json().items() if v is not None}}
        }
        import tomllib

        self.valid["target"] = tomllib.loads((ROOT / "profiles" / "cpu.toml").read_text())
        self.valid["space"] = tomllib.loads((ROOT / "search_spaces" / "default.toml").read_text())
        made = LatencyTable({"device": "x", "runtime": "y"}, folder, reference_s={"float32": 1e-3})
        made.entries["s"] = Entry("s", "Conv", "Conv", 1e-5, 1e-7, dict.fromkeys(FEATURES, 1.0))
        made.models["n", "dense"] = Whole("n", "dense", 1e-3, 1e-5, {"s": 2})
        made._write_files(folder)
        self.valid["table"] = json.loads((folder / "fingerprint.json").read_text())
        self.tables = {name: (folder / name).read_bytes() for name in ("table.csv", "models.csv")}
        if run is not None:
            self.valid["record"] = json.loads((run / "record.json").read_text())
            point = next(path for path in (run / "candidates").iterdir() if (path / "recipe.json").is_file())
            self.valid["recipe"] = json.loads((point / "recipe.json").read_text())
            self.onnx = (point / "model.onnx").read_bytes()
            self.valid["manifest"] = {
                "schema": 1, "format": "onnx", "workload": self.valid["record"]["workload"], "target": self.valid["record"]["target"],
                "point": self.valid["record"]["front"][0], "tolerance": 1e-4, "layout": {"zeros": {}, "n_of_m": {}},
                "samples": {}, "fingerprint": self.valid["record"]["fingerprint"], "files": {"model.onnx": "0" * 64},
            }  # fmt: skip

    def _text(self, name: str, value: Any) -> bytes:
        if name in ("job", "target", "space"):
            return dump_toml(value).encode() if isinstance(value, dict) else str(value).encode()
        return json.dumps(value).encode()

    def read(self, name: str, data: bytes) -> None:
        path = self.folder / {
            "record": "record.json",
            "manifest": "manifest.json",
            "table": "fingerprint.json",
            "recipe": "recipe.json",
            "onnx": "model.onnx",
        }.get(name, f"{name}.toml")
        path.write_bytes(data)
        if name == "job":
            Job.read_file(path)
        elif name == "target":
            target.load(str(path))
        elif name == "space":
            space_file.load(str(path))
        elif name == "table":
            for other, stored in self.tables.items():
                (self.folder / other).write_bytes(stored)
            if data.startswith(b"CSV "):  # one of its other files, broken
                _, other, broken_ = data.split(b" ", 2)
                path.write_text(json.dumps(self.valid["table"]))
                (self.folder / other.decode()).write_bytes(broken_)
            LatencyTable.read(self.folder)
        elif name == "recipe":
            recipe_files.read_recipe(path)
        elif name == "manifest":
            (self.folder / "record.json").unlink(missing_ok=True)
            verify(self.folder)
        elif name == "onnx":
            read_onnx(path)
        else:
            record = read_record(self.folder)
            for show in (summary, front_csv, trials_csv, markdown):
                show(record)
            page_data(record, self.folder)
            if not record.front:
                rerank(self.folder, target.load("cpu"))


def fuzz(readers: Readers, name: str, count: int, seed: int, say: Callable[[str], None] = print) -> int:
    """Inputs that were neither read nor refused properly."""
    found: dict[str, int] = {}
    for number in range(count):
        draw = random.Random(f"{name} {seed} {number}")
        if name == "onnx":
            data = broken(readers.onnx, draw)
        else:
            try:
                data = readers._text(name, mutated(readers.valid[name], draw))
            except (ValueError, TypeError, UnicodeEncodeError, KeyError, AttributeError, RecursionError):
                continue  # this value can't be written in this format
            if name == "table" and draw.random() < 0.6:
                other = draw.choice(sorted(readers.tables))
                data = b"CSV " + other.encode() + b" " + broken(readers.tables[other], draw)
            elif draw.random() < 0.3:
                data = broken(readers._text(name, readers.valid[name]), draw)
        start = time.monotonic()
        try:
            readers.read(name, data)
        except HwpruneError:
            pass
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            if key not in found:
                say(f"  {name}, number {number}: {key}: {str(error)[:100]}")
            found[key] = found.get(key, 0) + 1
        if time.monotonic() - start > 5:
            say(f"  {name}, number {number}: took {time.monotonic() - start:.0f} s")
            found["slow"] = found.get("slow", 0) + 1
    return sum(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="job,target,space,table,recipe,record,manifest,onnx")
    parser.add_argument("--run", type=Path, help="a finished run directory; default: a small search is made")
    options = parser.parse_args()
    names = options.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        run = options.run
        if run is None and {"record", "recipe", "manifest", "onnx"} & set(names):
            import hwprune
            from hwprune.workload import demos

            run = Path(name) / "run"
            hwprune.search(demos.get("digits"), trials=3, out=run)
        folder = Path(name) / "files"
        folder.mkdir()
        readers = Readers(folder, run)
        for one in names:
            start = time.monotonic()
            bad = fuzz(readers, one, options.count // len(names), options.seed)
            print(
                f"{one}: {options.count // len(names):,} inputs in {time.monotonic() - start:.0f} s, {bad} findings", flush=True
            )


if __name__ == "__main__":
    main()
