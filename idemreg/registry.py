"""The public face: a registry of tasks in one file. Opens at first use; then one line a method, no logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, ParamSpec, Self, TypeVar, Unpack

from idemreg import manage
from idemreg.attempt import Attempt, acquire, run
from idemreg.claim import Claim
from idemreg.clock import Clock, seconds
from idemreg.idempotent import (
    Checksum,
    IdempotentFunction,
    TaskIdSource,
    Templates,
    add_task,
    idempotent,
    job_name,
    wanted,
)
from idemreg.model import Verdict
from idemreg.options import CallOptions, Durability, Options, is_durable
from idemreg.sqlite.backend import SqliteStore
from idemreg.store import Query
from idemreg.tagged import canonical
from idemreg.template import check_task_id
from idemreg.walk import drive

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta
    from types import TracebackType

    from idemreg.checkpointer import Checkpointer
    from idemreg.doctor import Finding
    from idemreg.model import Outcome, OwnerInfo, Status, Task
    from idemreg.sqlite.upkeep import Checkpoint, Mode
    from idemreg.store import Store

__all__ = ["Registry"]

P = ParamSpec("P")
R = TypeVar("R")

PAGE_TASKS: Final = 500


class Registry:
    """A registry of tasks in one SQLite file. Share it between threads; fork as you like.

    ``path``: the file; it is touched at the first use, and created then unless ``create=False``.
    ``durability``: "full" (what is acknowledged survives a power cut) or "normal" (survives process crashes only).
    ``busy_timeout``: seconds or `timedelta` to wait for another writer before `StoreBusyError`.
    ``checkpointer``: keep the -wal short in a background thread, see `Checkpointer`; else commits do it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        durability: Durability = "full",
        busy_timeout: float | timedelta = 10,
        clock: Clock | None = None,
        checkpointer: bool = False,
    ) -> None:
        is_durable(durability)
        self.path: Final = path
        self.durability: Final = durability
        self.clock: Final = clock or Clock()
        busy_s = seconds(busy_timeout, what="busy_timeout")
        self._store = SqliteStore(path, create=create, busy_s=busy_s, clock=self.clock)
        self._templates = Templates()
        self._checkpointer = self._keep_wal_short() if checkpointer else None

    @property
    def store(self) -> Store:
        """The store underneath, for what is built on a registry."""
        return self._store

    # --- run jobs -----------------------------------------------------------------------------------------------

    def idempotent(
        self,
        task_id: TaskIdSource,
        *,
        name: str | None = None,
        exclude: Iterable[str] = ("self", "cls"),
        checksum: Checksum | None = None,
        **options: Unpack[CallOptions],
    ) -> Callable[[Callable[P, R]], IdempotentFunction[P, R]]:
        """Decorate a function: it runs once for each task, and later calls return what it returned then.

        ``task_id``: a template over the arguments (``"coupon:{user_id}:{day}"``), or a callable that is called with
        them. ``name``: of the job, stored in its rows (the function's qualified name). ``exclude``: parameters that
        do not count for the checksum. ``checksum``: a callable that gives what counts instead. The other options:

        ``on_duplicate``: "return" what is stored, or "raise" `TaskDoneError`. ``wait``: seconds to wait for a running
        twin. ``on_failure``: "retry" at the next call, up to ``max_attempts`` claims, or "hold" for an operator.
        ``on_crash``: "hold" (the task becomes unknown), "rerun", or "verify" by the hook ``verify(task, *args,
        **kwargs)``. ``unknown_on``: errors that leave open whether the effect happened. ``release_on``: errors that
        put the task back. ``result``: a codec, or dataclasses to be stored. ``keep_for``: how long `purge` must leave
        the row alone (for ever). ``durability``: another than the registry's.
        """
        checked = self._options(options)

        def decorate(function: Callable[P, R]) -> IdempotentFunction[P, R]:
            job = idempotent(
                function,
                task_id,
                store=self._store,
                clock=self.clock,
                name=name,
                exclude=exclude,
                checksum=checksum,
                options=checked,
            )
            self._templates.claim(task_id, function)  # last: a function that was refused keeps none
            return job

        return decorate

    def run(
        self,
        task_id: str,
        job: Callable[[], R],
        *,
        payload: object = None,
        name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Outcome[R]:
        """Run ``job`` once for the task, and say how it went; a duplicate gets the stored outcome, ``replayed``.

        ``payload`` is what the checksum covers: the same task_id with another payload is a `ChecksumMismatchError`.
        """
        checked = self._options(options)
        request = wanted(task_id, job_name(job) if name is None else name, canonical(payload), checked)
        return run(self._store, self.clock, request, checked, job, (), {})

    def claim(self, task_id: str, *, payload: object = None, name: str = "", **options: Unpack[CallOptions]) -> Claim:
        """Claim the task now; ``with`` settles it. A task that is done is a `TaskDoneError`, with its outcome."""
        checked = self._options({**options, "on_duplicate": "raise"})
        request = wanted(task_id, name, canonical(payload), checked)
        claim = drive(acquire(Attempt(self._store, self.clock, request, checked), self._store.look(request)))
        assert isinstance(claim, Claim)  # noqa: S101 - with on_duplicate="raise" an outcome is an error
        claim.hold()
        return claim

    # --- look ---------------------------------------------------------------------------------------------------

    def get(self, task_id: str) -> Task | None:
        """The task's row, or None. What it says is durable."""
        return self._store.get([check_task_id(task_id)])[0]

    def tasks(self, *, status: Status | None = None, prefix: str = "") -> Iterator[Task]:
        """All tasks in the order of their task_id, read in pages: no transaction stays open in between."""
        query, after = Query(status, prefix), None
        while True:
            page = self._store.page(query, after, PAGE_TASKS)
            yield from page.tasks
            if (after := page.after) is None:
                return

    def count(self) -> dict[Status, int]:
        """How many tasks are in each status that occurs."""
        return self._store.count()

    def owner(self, task: Task) -> OwnerInfo | None:
        """Who runs the task, and whether it lives; None where nobody does."""
        return self._store.owner(task)

    # --- operate ------------------------------------------------------------------------------------------------

    def add(self, task_id: str, *, payload: object = None, name: str = "") -> Task:
        """Make sure that the task has a row, `pending` where it is new."""
        return add_task(self._store, wanted(task_id, name, canonical(payload), self._options({})))

    def resolve(
        self,
        task_id: str,
        verdict: manage.ResolveVerdict | Verdict,
        *,
        result: object = None,
        evidence: str = "",
        by: str = "operator",
    ) -> Task:
        """End an unknown task by what you know.

        It "happened" (then ``result`` is what callers get), "did-not-happen" (it may run again, if attempts are left),
        or "cannot-tell" (noted, and it stays unknown). `TransitionError` where the task is not unknown. ``result`` is
        plain data: of a job with a codec (``result=``), give what the codec's ``encode`` returns.
        """
        return manage.resolve(self._store, task_id, verdict, result, evidence, by)

    def retry(self, task_id: str, *, reason: str = "", by: str = "operator") -> Task:
        """Allow a failed task one more attempt, also where its failure is held or its attempts are used up."""
        return manage.settle(self._store, task_id, Verdict.RETRY, reason, by)

    def skip(self, task_id: str, reason: str, *, by: str = "operator") -> Task:
        """End a pending task for good: it will not run."""
        return manage.settle(self._store, task_id, Verdict.SKIPPED, reason, by)

    def cancel(self, task_id: str, *, reason: str = "", by: str = "operator") -> Task:
        """End a pending, failed or unknown task for good: it will not run again."""
        return manage.settle(self._store, task_id, Verdict.CANCELLED, reason, by)

    def forget(self, task_id: str, *, force: bool = False) -> Task:
        """Remove the row, and give it back: the task may run again, under larger tokens.

        An unknown task, and a running one whose owner is dead, only by ``force``; one that runs, never.
        """
        return manage.forget(self._store, task_id, force=force)

    def checkpoint(self, mode: Mode = "PASSIVE", *, wait: float | timedelta | None = None) -> Checkpoint:
        """Move the -wal into the database. PASSIVE waits for nobody; FULL, RESTART and TRUNCATE wait for others.

        ``wait``: for how long, if not for the busy time-out. They keep writers out meanwhile.
        """
        return self._store.checkpoint(mode, busy_s=None if wait is None else seconds(wait, what="wait"))

    def doctor(self, *, full: bool = False) -> list[Finding]:
        """Examine the file and all around it, and change nothing; see `idemreg.doctor.examine`."""
        from idemreg.doctor import examine  # noqa: PLC0415 - a program that is well never needs it

        return examine(self._store.path, full=full, clock=self.clock)

    # --- open and close -----------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Open the file now, and create it where that is allowed; otherwise the first use does."""
        self._store.open()
        return self

    def close(self) -> None:
        """Close the file. A claim that has not ended keeps its lock, and can end still; a later use opens anew."""
        if self._checkpointer is not None:
            self._checkpointer.stop()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r})"

    def _keep_wal_short(self) -> Checkpointer:
        from idemreg.checkpointer import Checkpointer  # noqa: PLC0415 - a millisecond of import for those who ask for it

        return Checkpointer(self, in_children=True).start()

    def _options(self, options: CallOptions) -> Options:
        return Options.of(options, self.durability)
