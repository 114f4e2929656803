"""`hwprune.search`: from a workload to a confirmed front."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hwprune.errors import HwpruneError, UsageError
from hwprune.records.record import read_record
from hwprune.searching import job, time_plan
from hwprune.searching.callbacks import Callback
from hwprune.searching.job import FILE, Job
from hwprune.searching.progress import Progress
from hwprune.searching.resolved_job import ResolvedJob, resolve
from hwprune.searching.result import Result
from hwprune.searching.sampling import samplers
from hwprune.searching.session import Session
from hwprune.searching.stored_run import is_complete, load
from hwprune.searching.study.attributes import STARTED
from hwprune.searching.study.storage import check_reachable
from hwprune.searching.study.store import Store
from hwprune.searching.time_plan import Times
from hwprune.workload import loading
from hwprune.workload.workload import Workload


def search(
    workload: Workload | str,
    target: str = "cpu",
    space: str = "default",
    trials: int = 60,
    out: str | Path | None = None,
    seed: int = 0,
    sampler: str = job.DEFAULT,
    time_s: float = 0.0,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    max_latency_s: float | None = None,
    max_size: int | None = None,
    recover: str = "auto",
    *,
    all_patterns: bool = False,
    storage: str = "",
    database: str | Path = "",
    remote: str = "",
    table: str | Path = "",
    estimate: bool = False,
    quantize: str = "",
    resume: bool = False,
    trial_timeout_s: float = 120.0,
    memory_limit: int = 0,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Search for recipes, measure them on the target, confirm the front.

    Args:
        workload: model, data and metric; or where they come from, as on the command line (``demo:digits``).
        target, space, sampler: names, or paths of .toml files for target and space.
        trials: number of different recipes to evaluate; 0 with ``time_s``: as many as fit.
        out: run directory; default ``runs/NAME-TIME``. One that holds a run is refused without ``resume``.
        time_s: seconds of the whole search: preparation, trials and measuring the front again are fitted into it, but at least
            three trials and three finalists are evaluated. Training and quantising finalists come on top. 0: no limit.
        max_drop, min_speedup, max_latency_s, max_size: constraints in the metric's own unit, in times dense, in seconds of one
            batch, and in bytes of the model's file.
        recover: ``none``, compensations joined by ``+`` (see `hwprune.compensation`), ``auto``: what the model has use for, or a
            training of the finalists, ``finetune:EPOCHS``, ``distill:EPOCHS`` or ``gradual:EPOCHS``, for which the workload needs
            ``train`` data.
        all_patterns: search also patterns that the target can't execute faster.
        storage: Optuna storage URL; default: SQLite in the run directory.
        database: folder of the option database, which runs share; default: in the user's cache folder.
        remote: ``ssh://[user@]host[:port][/path/to/hwprune]`` of a machine with hwprune that measures; default: this one.
        table: folder of a latency table that was measured on the device (`hwprune probe --table`): latencies are
            predicted, and the front is written to front.table.csv.
        estimate: latencies from the profile's roofline; the front is written to front.estimated.csv.
        quantize: precisions joined by commas, such as ``int8,int4``: the dense model and every point of the front are tried in
            each, measured and scored like any other candidate.
        resume: go on with the run in ``out``.
        trial_timeout_s, memory_limit: limits of one candidate in the measuring process.
        callbacks: each called as ``callback(study, trial)`` after every trial of this process, as in `optuna.Study.optimize`;
            ``study.stop()`` ends the trials, and the front is confirmed. Optuna's own callbacks fit.

    Returns:
        The finished search. Its front may be empty, and then its notes say why: that is no exception here, because the trials
        and the run directory are there to look at (`Result.best` raises, and the command line ends with exit code 1).

    Raises:
        UsageError: wrong names, files or data (exit code 2 on the command line).
        RunError: the dense model can't be measured, or the storage fails.
        KeyboardInterrupt: passed on after the state was saved.
    """
    if isinstance(workload, str):
        workload = loading.load(workload)
    job = Job(
        workload=workload.source, target=target, space=space, trials=trials, time_s=time_s, sampler=sampler, seed=seed,
        max_drop=max_drop, min_speedup=min_speedup, max_latency_s=max_latency_s, max_size=max_size,
        recover=recover, all_patterns=all_patterns,
        trial_timeout_s=trial_timeout_s, memory_limit=memory_limit, storage=storage, database=str(database),
        remote=remote, table=str(table), estimate=estimate, quantize=quantize,
    )  # fmt: skip
    return run_job(
        check_job(job),
        workload,
        Path(out) if out else None,
        resume=resume,
        progress=progress or Progress(),
        callbacks=callbacks,
    )


def default_run(name: str) -> Path:
    """runs/NAME-DATE-TIME."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return Path("runs") / f"{safe}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def check_job(job: Job) -> ResolvedJob:
    """The job with everything that it names; raises `UsageError` for all that can be wrong before a model is loaded."""
    samplers.check(job.sampler)
    return resolve(job)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Two searches can't share a run directory."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another search is working in {run}") from error
        yield


def join(run: Path, progress: Progress | None = None, workload: Workload | None = None) -> int:
    """Work on a run that `search` has begun, until it has all its trials; returns how many this process did.

    Any number of processes may join, on any machines that see the run directory and its storage. Those on another device than
    the search prune and score candidates; latencies are measured by those on the study's own.

    Args:
        run: the run directory.
        workload: of a run that was made from a live Python object; default: as the run's job says.

    Raises:
        UsageError: there is no such run, it is of another model, or it has not begun.
    """
    job = Job.read(run) if (run / FILE).is_file() else None
    if job is None:
        raise UsageError(f"{run} holds no run to work on (no {FILE}): has `hwprune search --out {run}` got to its first trial?")
    if workload is None:
        if not job.workload:
            raise UsageError(f"the run in {run} was made from a live Python object: join it with hwprune.join(run, workload=...)")
        workload = loading.load(job.workload)
    with _writable(run):
        return Session(resolve(job, available=False), workload, run, progress or Progress()).join()


def run_job(
    job: ResolvedJob,
    workload: Workload | Callable[[], Workload],
    run: Path | None,
    *,
    resume: bool,
    progress: Progress,
    began: Callable[[Path], None] = lambda _run: None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """The search itself, with everything resolved.

    Args:
        workload: or what loads it, which may take long: the job is written before.
        run: the run directory; None: one with the workload's name.
        began: told the run directory as soon as it is known.
    """
    times = Times(job.job, progress)
    progress.begin(times.heading(job.job, run))
    times.phase(time_plan.LOAD)
    if run is None:
        progress.stage(f"loading {job.job.workload}")
        workload = workload if isinstance(workload, Workload) else workload()
        run = default_run(workload.name)
    began(run)
    held = (run / FILE).exists()
    if held and not resume:
        raise UsageError(f"{run} holds a run already: go on with it (--resume) or choose another --out")
    if resume and not held:
        raise UsageError(f"{run} holds no run to resume")
    check_reachable(job.job.storage)
    with _writable(run), locked(run):
        progress.begin(times.heading(job.job, run))  # the log can be written from now on
        begun = resume and _begun(job, run)
        if begun and (run / "record.json").is_file() and Job.read(run) == job.job and is_complete(read_record(run)):
            progress.note("this run is finished: nothing is left to do (--trials or --recover give it more)")
            progress.close()
            return load(run)
        if resume and not begun:
            progress.note("the run was interrupted before its first trial: it begins again, with what is kept of its preparation")
        if not begun:
            job.job.write(run)  # first of all: whoever interrupts the first minute can go on
        else:
            times.resumed()
        try:
            if not isinstance(workload, Workload):
                progress.stage(f"loading {job.job.workload}")
                workload = workload()
            return Session(job, workload, run, progress, times, callbacks).go(resume=begun)
        except HwpruneError:
            if not begun and not _begun(job, run):  # nothing can come of it: no half-made run is left behind
                (run / FILE).unlink(missing_ok=True)
            raise


def _begun(job: ResolvedJob, run: Path) -> bool:
    """Has the run a study? One that has results must have one."""
    if (run / "record.json").exists():
        return True
    if not job.job.storage and not (run / "study.db").is_file():  # opening it would make one
        return False
    try:
        store = Store(job.job.storage or Store.default_storage(run), None)
    except UsageError:
        return False
    found = store.read(STARTED) is not None
    store.close()
    return found


@contextlib.contextmanager
def _writable(run: Path) -> Iterator[None]:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't write into {run}: {error.strerror or error}") from error
    if not os.access(run, os.W_OK):
        raise UsageError(f"can't write into {run}: permission denied")
    yield
