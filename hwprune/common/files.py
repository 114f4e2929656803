"""Typed reading of TOML and JSON with every fault told at once, and writing that a crash can't tear."""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import json
import math
import os
import secrets
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprune.errors import UsageError

_REQUIRED: Any = object()


class Table:
    """One table of a file. Reads collect faults; ``finish`` raises them together.

    Every getter names what was got and what must hold. A key that no getter asked for is a fault (a typo).
    """

    def __init__(self, data: Mapping[str, Any], where: str, faults: list[str] | None = None, prefix: str = "") -> None:
        self._data = data
        self._where = where
        self._prefix = prefix
        self._faults = faults if faults is not None else []
        self._asked: set[str] = set()

    @property
    def fault_count(self) -> int:
        """How many faults the whole file has so far: equal before and after a row is read if nothing is wrong with it."""
        return len(self._faults)

    def fault(self, key: str, text: str) -> None:
        self._faults.append(f"{self._prefix}{key}: {text}")

    def _get(self, key: str, default: Any) -> tuple[Any, bool]:
        self._asked.add(key)
        if key in self._data:
            return self._data[key], True
        if default is _REQUIRED:
            self.fault(key, "is missing")
        return (None if default is _REQUIRED else default), False

    def text(self, key: str, default: Any = _REQUIRED, choices: Iterable[str] | None = None) -> str:
        value, given = self._get(key, default)
        if given and not isinstance(value, str):
            self.fault(key, f"must be a text, got {value!r}")
            return ""
        if given and choices is not None and value not in (allowed := sorted(choices)):
            self.fault(key, f"must be one of {', '.join(allowed)}, got {value!r}{_nearest(value, allowed)}")
        return value if isinstance(value, str) else ""

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if self._data.get(key) is not None else self._get(key, None)[0]

    def number(self, key: str, default: Any = _REQUIRED, low: float = -math.inf, high: float = math.inf) -> float:
        value, given = self._get(key, default)
        if given and (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)):
            self.fault(key, f"must be a finite number, got {value!r}")
            return 0.0
        if given and not low <= value <= high:
            self.fault(key, f"must be in [{low:g}, {high:g}], got {value!r}")
        return float(value) if value is not None else 0.0

    def optional_number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        return self.number(key, low=low, high=high) if self._data.get(key) is not None else self._get(key, None)[0]

    def integer(self, key: str, default: Any = _REQUIRED, low: int | None = None, high: int | None = None) -> int:
        value, given = self._get(key, default)
        if given and (isinstance(value, bool) or not isinstance(value, int)):
            self.fault(key, f"must be a whole number, got {value!r}")
            return 0
        if given and ((low is not None and value < low) or (high is not None and value > high)):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            self.fault(key, f"must be {bounds}, got {value!r}")
        return int(value) if value is not None else 0

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        value, given = self._get(key, default)
        if given and not isinstance(value, bool):
            self.fault(key, f"must be true or false, got {value!r}")
        return bool(value)

    def texts(self, key: str, default: Any = _REQUIRED, choices: Iterable[str] | None = None) -> tuple[str, ...]:
        value, given = self._get(key, default)
        if given and (not isinstance(value, list) or not all(isinstance(item, str) for item in value)):
            self.fault(key, f"must be a list of texts, got {value!r}")
            return ()
        if given and choices is not None:
            allowed = sorted(choices)
            for item in value:
                if item not in allowed:
                    self.fault(key, f"holds {item!r}; choices: {', '.join(allowed)}{_nearest(item, allowed)}")
        return tuple(value or ())

    def numbers(self, key: str, default: Any = _REQUIRED, low: float = -math.inf, high: float = math.inf) -> tuple[float, ...]:
        value, given = self._get(key, default)
        if given and (not isinstance(value, list) or not all(type(item) in (int, float) for item in value)):
            self.fault(key, f"must be a list of numbers, got {value!r}")
            return ()
        if given and not all(low <= item <= high for item in value):
            self.fault(key, f"must hold numbers in [{low:g}, {high:g}], got {value!r}")
        return tuple(float(item) for item in value or ())

    def table(self, key: str, default: Any = _REQUIRED) -> Table:
        value, given = self._get(key, default)
        if given and not isinstance(value, dict):
            self.fault(key, f"must be a table, got {value!r}")
            value = {}
        return Table(value or {}, self._where, self._faults, f"{self._prefix}{key}.")

    def tables(self, key: str, default: Any = _REQUIRED) -> list[Table]:
        """The rows that are tables; each of the others is a fault with its place."""
        value, given = self._get(key, default)
        if given and not isinstance(value, list):
            self.fault(key, f"must be a list of tables, got {type(value).__name__}")
            return []
        rows = []
        for place, row in enumerate(value or []):
            if isinstance(row, dict):
                rows.append(Table(row, self._where, self._faults, f"{self._prefix}{key}[{place}]."))
            else:
                self.fault(f"{key}[{place}]", f"must be a table, got {row!r}")
        return rows

    def free(self, key: str) -> dict[str, Any]:
        """A table whose content is not checked (options passed on, numbers with their source)."""
        value, _ = self._get(key, {})
        if not isinstance(value, dict):
            self.fault(key, f"must be a table, got {value!r}")
            return {}
        return dict(value)

    def close(self) -> None:
        """Tell every key that no getter has asked for as a fault."""
        for key in self._data:
            if key not in self._asked:
                self.fault(key, f"is not known here{_nearest(key, sorted(self._asked))}")

    def finish(self, more: Sequence[str] = ()) -> None:
        """Raise a `UsageError` with every fault of this file, if there are any.

        Args:
            more: what is wrong with the values together.
        """
        self.close()
        faults = [*self._faults, *more]
        if faults:
            raise UsageError(f"{self._where}: {len(faults)} problem{'s' if len(faults) > 1 else ''}", faults)


def _nearest(value: object, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def read_toml(path: Path) -> Table:
    """The file's root table. Raises `UsageError` if it can't be read or isn't TOML."""
    try:
        return Table(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def read_json(path: Path) -> Any:
    """The file's content. Raises `UsageError` if it can't be read or isn't JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error


def read_json_table(path: Path) -> Table:
    data = read_json(path)
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return Table(data, str(path))


def dump_json(value: Any) -> str:
    """JSON with a final newline; a NaN is an error, because JSON has none."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/hwprune``, or ``~/.cache/hwprune``; where that can't be written, a folder of the user's own among the
    temporary ones: nothing in it is needed, it only saves time.
    """
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(root) / "hwprune"
    there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if os.access(there, os.W_OK | os.X_OK):
        return folder
    other = Path(tempfile.gettempdir()) / f"hwprune-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        other.mkdir(mode=0o700)
    return other if other.stat().st_uid == os.getuid() else folder


def write_atomic(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a whole file or nothing: a crash leaves the old content or the new one.

    Args:
        private: only the user may read it (mode 0600); else as the umask says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # of a full disk the system names no file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dump_toml(values: Mapping[str, Any]) -> str:
    """Flat settings and one level of tables as TOML (the standard library only reads it)."""
    plain = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    for key, value in values.items():
        if isinstance(value, Mapping):
            plain += ["", f"[{key}]", *(f"{_key(name)} = {_toml(item)}" for name, item in value.items())]
    return "\n".join(plain) + "\n"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's escapes are TOML's, but for DEL, and for characters beyond U+FFFF, which TOML wants as they are.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of CSV: the header, then a line a row. Raises `ValueError` for a row with a column that the header lacks."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
