"""Opening, creating and loading an Optuna study in its storage."""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna

from hwprune.common.masking import mask_password
from hwprune.errors import RunError, UsageError, first_line
from hwprune.searching.study.attributes import STARTED

STUDY = "hwprune"
JOURNAL = "journal:"
"""A journal file as storage: ``journal:PATH``."""
SQLITE_FILE = "sqlite-file:"
"""An SQLite file under a path that is no part of a URL."""
_NO_TABLES = ("no such table", "does not exist", "UndefinedTable", "NoneType", "No row was found")
"""What databases say where another process has not made the tables, or is just making them."""


def check_reachable(storage: str) -> None:
    """Connect to a database and leave it as it is, so that nobody waits for a search that can't keep its trials.

    Args:
        storage: Optuna's URL; files are not looked at.

    Raises:
        UsageError: its driver is not installed.
        RunError: it can't be reached.
    """
    from sqlalchemy import create_engine

    if "://" not in storage or storage.startswith("sqlite"):
        return
    with storage_errors(storage):
        engine = create_engine(storage)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


@contextlib.contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """What a storage raises meanwhile, as errors of hwprune; passwords are masked in their texts."""
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    shown = mask_password(storage)
    try:
        yield
    except NoSuchModuleError as error:
        raise UsageError(f"storage {shown} needs a driver that is not installed: {mask_password(str(error))}") from None
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
        raise RunError(f"the study's storage {shown} failed: {mask_password(first_line(error))}") from None
    except ImportError as error:
        hint = "pip install 'hwprune[postgresql]'" if storage.startswith("postgres") else str(error)
        raise UsageError(f"storage {shown} needs a driver that is not installed: {hint}") from error


def _open(storage: str, *, create: bool) -> Any:
    """The storage; without ``create`` its tables must be there.

    SQLite in write-ahead mode: a commit survives the process being killed and costs a tenth of a synced one. Whoever only joins
    makes no tables: two processes that make them at the same moment fail, and one of them is the search itself.
    """
    if storage.startswith(JOURNAL):
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path = storage.removeprefix(JOURNAL)
        if path.startswith("//"):
            path = path[2:]
        if not Path(path).parent.is_dir():
            raise UsageError(f"storage {storage}: there is no folder {Path(path).parent}")
        # Opened exclusively, not linked: a lock that survives a killed process on any file system is taken over after a while.
        return optuna.storages.JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    for scheme in ("postgresql://", "postgres://"):  # which driver these mean differs between versions of SQLAlchemy
        if storage.startswith(scheme):
            storage = "postgresql+psycopg://" + storage.removeprefix(scheme)
    if not storage.startswith(("sqlite:", SQLITE_FILE)):
        return optuna.storages.RDBStorage(storage, engine_kwargs={"pool_pre_ping": True}, skip_table_creation=not create)
    import sqlalchemy
    from sqlalchemy import event

    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}}
    if storage.startswith(SQLITE_FILE):
        path = storage.removeprefix(SQLITE_FILE)
        arguments = {
            "creator": lambda: sqlite3.connect(path, timeout=60, check_same_thread=False), "poolclass": sqlalchemy.pool.QueuePool,
        }  # fmt: skip
        storage = "sqlite://"
    opened = optuna.storages.RDBStorage(storage, engine_kwargs=arguments, skip_table_creation=not create)

    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(opened.engine, "connect", configure)
    opened.engine.dispose()  # the connection that made the tables was not configured
    return opened


def _file_of(storage: str) -> Path | None:
    """The file of a storage in SQLite; None: it is another, or has options that SQLAlchemy reads."""
    if storage.startswith(SQLITE_FILE):
        return Path(storage.removeprefix(SQLITE_FILE))
    plain = storage.startswith("sqlite:///") and "?" not in storage and storage != "sqlite:///:memory:"
    return Path(storage.removeprefix("sqlite:///")) if plain else None


def _is_made(path: Path) -> bool:
    """Are all tables of a file there? To open it sooner would make an empty one, or write its version twice, which fails both."""
    if not path.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=60)) as connection:
            return connection.execute("SELECT version_num FROM alembic_version").fetchone() is not None
    except sqlite3.OperationalError as error:
        return "no such table" not in str(error)  # whoever opens it says what else is wrong


def load_study(storage: str) -> optuna.Study:
    """The study that another process has made. Raises `UsageError` if there is none yet."""
    if (path := _file_of(storage)) is not None and not _is_made(path):
        raise UsageError(f"{mask_password(storage)} holds no hwprune study (yet)")
    try:
        return optuna.load_study(storage=_open(storage, create=False), study_name=STUDY)
    except Exception as error:
        chain = f"{error} {error.__cause__} {error.__context__}"
        if isinstance(error, KeyError) or any(word in chain for word in _NO_TABLES):
            raise UsageError(f"{mask_password(storage)} holds no hwprune study (yet)") from None
        raise


def create_study(storage: str) -> optuna.Study:
    """A new study. One that was left by a start that never got to its first trial is replaced.

    Raises:
        UsageError: there is one that has begun.
    """
    opened = _open(storage, create=True)
    try:
        study = _new(opened)
    except optuna.exceptions.DuplicatedStudyError as error:
        left = optuna.load_study(storage=opened, study_name=STUDY)
        if left.user_attrs.get(STARTED) or left.get_trials(deepcopy=False):
            raise UsageError(
                f"{mask_password(storage)} holds a hwprune study already: go on with --resume (in the run directory of then) or "
                "use another storage"
            ) from error
        optuna.delete_study(study_name=STUDY, storage=opened)
        study = _new(opened)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["drop", "speedup"])
    return study


def _new(opened: Any) -> optuna.Study:
    return optuna.create_study(storage=opened, study_name=STUDY, directions=["minimize", "maximize"], load_if_exists=False)
