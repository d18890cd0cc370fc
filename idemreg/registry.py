"""The public face: a registry of tasks in one file. Opens at first use; then one line a method, no logic.

What runs jobs is here; what people ask and do about them is in `idemreg.operations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, cast

from idemreg.keyed import KeyNote, Secrecy
from idemreg.operations import Operations

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from datetime import timedelta

    from idemreg.batch import Handled
    from idemreg.checkpointer import Checkpointer
    from idemreg.claim import Claim, Terms
    from idemreg.clock import Clock
    from idemreg.clockcheck.verdict import Permit
    from idemreg.deciding import Outcome
    from idemreg.errors import IdemregError
    from idemreg.events import OnEvent, Teller
    from idemreg.idempotent import Checksum, Decorator, Recoverable, TaskIdSource
    from idemreg.keyed import ErrorDetail
    from idemreg.model import Task
    from idemreg.offload import Offload
    from idemreg.options import CallOptions, Durability, Options
    from idemreg.planning import Coalesce, Overlap
    from idemreg.scheduled import Scheduled, SlotRun
    from idemreg.sweeping import Swept

__all__ = ["Registry"]

M = TypeVar("M")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Operations):
    """A registry of tasks in one SQLite file. Share it between threads; fork as you like.

    ``path``: the file; it is touched at the first use, and created then unless ``create=False``.
    ``durability``: "full" (what is acknowledged survives a power cut) or "normal" (survives process crashes only).
    ``busy_timeout``: seconds or `timedelta` to wait for another writer before `StoreBusyError`.
    ``clock``: another than the system's, for tests; see `idemreg.testing`.
    ``on_event``: a callback that is told of claims, ends, replays and refusals; see `idemreg.events`.
    ``checkpointer``: keep the -wal short in a background thread, see `Checkpointer`; else commits do it.
    ``checksum_key``: a secret of at least 16 bytes, for arguments that could be guessed: checksums are HMACs then. The
    same from the first task on and for ever, in every process (`ChecksumKeyError`).
    ``error_detail``: what is stored of an error: "traceback" (type, message, where it came from), "message" or "type".
    ``page_checksums``: a file that is made now verifies each page as it is read, against a disk that gives other bits
    than it was given; then no other program may write to it, or move its -wal. See `idemreg.sqlite.pages`.
    ``unsafe_path``: use the path also where others could plant or swap the files: a symbolic or hard link, a folder
    that everybody may write, files of another user. Refused otherwise (`StorePathError`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        durability: Durability = "full",
        busy_timeout: float | timedelta = 10,
        clock: Clock | None = None,
        on_event: OnEvent | None = None,
        checkpointer: bool = False,
        checksum_key: str | bytes | None = None,
        error_detail: ErrorDetail = "traceback",
        page_checksums: bool = False,
        unsafe_path: bool = False,
    ) -> None:
        self.secrecy: Final = Secrecy.of(checksum_key, error_detail)
        key = self.secrecy.key
        super().__init__(
            path,
            create=create,
            durability=durability,
            busy_timeout=busy_timeout,
            clock=clock,
            unsafe_path=unsafe_path,
            key_note=KeyNote(None if key is None else key.note),
            page_checksums=page_checksums,
        )
        self._scheduled: dict[str, Scheduled] = {}  # by the schedule's name
        self._recoverable: dict[str, Recoverable] = {}  # by the job's name
        self._templates: dict[str, str] = {}  # each literal one, and whose it is
        self._teller = None if on_event is None else self._tell(on_event)
        self._offload: Offload | None = None
        self._checkpointer = self._keep_wal_short() if checkpointer else None

    # --- run jobs -----------------------------------------------------------------------------------------------

    def idempotent(
        self,
        task_id: TaskIdSource,
        *,
        name: str | None = None,
        exclude: Iterable[str] = ("self", "cls"),
        checksum: Checksum | None = None,
        recover: bool = False,
        **options: Unpack[CallOptions],
    ) -> Decorator:
        """Decorate a function: it runs once for each task, and later calls return what it returned then.

        ``task_id``: a template over the arguments (``"coupon:{user_id}:{day}"``), or a callable that is called with
        them. ``name``: of the job, stored in its rows (the function's qualified name). ``exclude``: parameters that
        do not count for the checksum. ``checksum``: a callable that gives what counts instead. ``recover``: keep the
        arguments in the file until the task is final, so that `sweep` can run it again once its owner is dead.
        Plain data of at most 1 MiB (`ArgumentError`), what is excluded has a default. The other options:

        ``on_duplicate``: "return" what is stored, or "raise" `TaskDoneError`. ``wait``: seconds to wait for a running
        twin. ``on_failure``: "retry" at the next call, up to ``max_attempts`` claims, or "hold" for an operator.
        ``on_crash``: "hold" (the task becomes unknown), "rerun", or "verify" by the hook ``verify(task, *args,
        **kwargs)``. ``unknown_on``: errors that leave open whether the effect happened. ``release_on``: errors that
        put the task back. ``result``: a codec, or dataclasses to be stored. ``keep_for``: how long `purge` must leave
        the row alone (for ever). ``durability``: another than the registry's. ``lease``: another owner may take the
        task over once this process has given no sign of life for so long (seconds or `timedelta`); ``on_lost`` is told
        then. ``timeout``: how long the job may take; a coroutine is cancelled then, a thread goes on and is overdue.
        """
        import inspect  # noqa: PLC0415 - 5 ms that a command such as `idemreg show` need not pay

        from idemreg import idempotent as jobs  # noqa: PLC0415 - as above
        from idemreg.beside import beside  # noqa: PLC0415

        checked = self.checked(options)

        def decorate(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - what `Decorator` says
            recipe = jobs.recipe_of(
                function, task_id, checked, name=name, exclude=exclude, checksum=checksum, recover=recover
            )
            terms = self.async_terms(checked) if inspect.iscoroutinefunction(function) else self.terms(checked)
            job = jobs.idempotent(function, recipe, beside(terms) if recover else terms)
            jobs.claim_template(self._templates, task_id, function)  # last: a function that was refused keeps none
            if recover:
                jobs.note_recoverable(self._recoverable, recipe, function)
            return job

        return cast("Decorator", jobs.unless_bare(task_id, decorate))

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
        from idemreg.calls import run  # noqa: PLC0415 - whoever only looks at tasks does without

        return run(self, task_id, job, payload, name, options)

    def claim(self, task_id: str, *, payload: object = None, name: str = "", **options: Unpack[CallOptions]) -> Claim:
        """Claim the task now; ``with`` settles it. A task that is done is a `TaskDoneError`, with its outcome."""
        from idemreg.calls import claim  # noqa: PLC0415 - as above

        return claim(self, task_id, payload, name, options)

    def claim_many(
        self, items: Iterable[tuple[str, object]], *, name: str = "", **options: Unpack[CallOptions]
    ) -> list[Claim | Outcome[Any] | IdemregError]:
        """Claim tasks, each (task_id, payload), by one commit. One answer an item, in order; none is raised.

        A claim; or the `Outcome` of an earlier success; or the error that a single claim would raise. Call ``enter`` on
        a claim (or use it by ``with``) when its job begins: those not entered are put back when this process dies.
        """
        from idemreg.calls import claim_many  # noqa: PLC0415 - as above

        return claim_many(self, items, name, options)

    def finish_many(self, ended: Iterable[tuple[Claim, object]]) -> list[Outcome[Any] | IdemregError]:
        """End claims, each (claim, result), as succeeded by one commit. One answer an item, in order; none raised."""
        from idemreg.calls import finish_many  # noqa: PLC0415 - as above

        return finish_many(ended)

    def consume(
        self,
        messages: Iterable[M | None],
        job: Callable[[M], R],
        *,
        task_id: Callable[[M], str],
        payload: Callable[[M], object] | None = None,
        batch: int = 100,
        name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[Handled[M, R]]:
        """Run ``job`` once for each message's task, in batches of two commits, and say what became of each message.

        Acknowledge a message when it comes out: then its end is stored. A None among the messages ends a batch early,
        for a source that has none at the moment. ``payload``: what counts of a message (all of it).
        Killed in mid-batch it leaves what the batch had begun unknown, also jobs that had returned: `resolve` each, or
        give another ``on_crash``; a smaller ``batch`` leaves fewer. The others run when they come again.
        """
        from idemreg.calls import consume  # noqa: PLC0415 - as above

        return consume(self, messages, job, task_id, payload, batch, name, options)

    def add(self, task_id: str, *, payload: object = None, name: str = "") -> Task:
        """Make sure that the task has a row, `pending` where it is new."""
        from idemreg.calls import add  # noqa: PLC0415 - as above

        return add(self, task_id, payload, name)

    # --- slots --------------------------------------------------------------------------------------------------

    def scheduled(
        self,
        name: str,
        *,
        cron: str,
        tz: str = "UTC",
        misfire_grace: float | timedelta | None = None,
        coalesce: Coalesce = "latest",
        limit: int = 100,
        overlap: Overlap = "skip",
        **options: Unpack[CallOptions],
    ) -> Callable[[F], F]:
        """Decorate a function, which stays as it is: `run_due` runs it once for each slot of the schedule.

        It takes nothing, or its slot, a datetime in UTC; `current_claim().slot` has it as well. ``cron``: five fields;
        ``tz``: the zone whose clock they mean (UTC). ``misfire_grace``: how long after its instant a slot may start
        (None: for ever). ``coalesce``: where several wait, "latest" runs the newest, "earliest" the oldest, "all" each
        in order, of more than ``limit`` the newest. ``overlap``: what comes due while one runs is skipped ("skip"), or
        waits ("queue"). The other options are those of `idempotent`. `ScheduleError` where it makes no schedule.
        """
        from idemreg.slotted import scheduled  # noqa: PLC0415 - most programs have no schedule

        return scheduled(self, name, cron, tz, misfire_grace, coalesce, limit, overlap, options)

    def run_due(self, *names: str) -> list[SlotRun]:
        """Run what is due of these schedules (of all that this registry has), each slot once over all processes.

        Catches up what was missed since anybody last called it, as the options say. An error of a job is in its
        `SlotRun`, not raised. A schedule that the file sees for the first time begins now.
        """
        from idemreg.slotted import run_due  # noqa: PLC0415 - as above

        return run_due(self, names)

    def run_slot(self, task_id: str) -> Outcome[Any]:
        """Run one slot by hand, whatever its window, also where its schedule has skipped it; or replay it."""
        from idemreg.slotted import run_slot  # noqa: PLC0415 - as above

        return run_slot(self, task_id)

    def may_schedule(self) -> Permit:
        """What the clock allows; asked before every look at a schedule. See `check_clock`."""
        return self._checked_clock(is_thorough=False).permit

    @property
    def schedules(self) -> dict[str, Scheduled]:
        """The functions on a schedule, by its name; for what is built on a registry."""
        return self._scheduled

    # --- recovery -----------------------------------------------------------------------------------------------

    def sweep(self) -> list[Swept]:
        """Rerun or settle every task whose owner is dead, at once, and say what became of each.

        Those of functions of this registry that were decorated with ``recover=True`` are run again with the arguments
        of then, one after the other, under their ``on_crash``; of several sweeps at once one gets each. A verify hook
        that has not answered, since it was cut off say, is asked as well, about tasks that are unknown. All others
        become unknown, but for those that their next call runs again by itself. An error of a job is in its `Swept`,
        not raised; SystemExit and KeyboardInterrupt are in the main thread, where a signal may have raised them. Killed
        at any instruction it leaves what the next sweep finds. See `idemreg.sweeping`.
        """
        from idemreg.rerunning import sweep  # noqa: PLC0415 - few programs need it

        return sweep(self)

    @property
    def recoverable(self) -> dict[str, Recoverable]:
        """The functions that can be rerun without a caller, by their jobs' names; for what is built on a registry."""
        return self._recoverable

    # --- close --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file, once no other thread is inside it. A later use opens anew.

        A claim that has not ended keeps its lock, and can end still.
        """
        if self._checkpointer is not None:
            self._checkpointer.stop()
        super().close()
        if self._offload is not None:
            self._offload.close()

    def terms(self, options: Options) -> Terms:
        """What an attempt on this registry stands on; for what is built on a registry."""
        from idemreg.claim import Terms  # noqa: PLC0415 - as above

        terms = Terms(self._store, self.clock, options, self._teller)
        return terms if options.limits is None else self._limited(terms)

    @staticmethod
    def _limited(terms: Terms) -> Terms:
        from idemreg.limited import limited  # noqa: PLC0415 - for claims with a lease or a time limit only

        return limited(terms)

    def async_terms(self, options: Options) -> Terms:
        """The same for asynchronous callers, whose calls of the store go to threads of the registry's own."""
        from idemreg.async_claim import AsyncClaim  # noqa: PLC0415 - for asynchronous callers only
        from idemreg.claim import Terms  # noqa: PLC0415 - as above

        offload = self.offload
        terms = Terms(offload.store, self.clock, options, self._teller, AsyncClaim, offload)
        return terms if options.limits is None else self._limited(terms)

    @property
    def offload(self) -> Offload:
        """The threads for asynchronous callers."""
        if self._offload is None:
            from idemreg.offload import Offload  # noqa: PLC0415 - for asynchronous callers only

            self._offload = Offload(self._store)
        return self._offload

    @staticmethod
    def _tell(on_event: OnEvent) -> Teller:
        from idemreg.events import Teller  # noqa: PLC0415 - where somebody listens

        return Teller(on_event)

    def _keep_wal_short(self) -> Checkpointer:
        from idemreg.checkpointer import Checkpointer  # noqa: PLC0415 - a millisecond of import for those who ask for it

        return Checkpointer(self, in_children=True).start()

    def checked(self, options: CallOptions) -> Options:
        """The options of a call on this registry, checked; for what is built on a registry."""
        from idemreg.options import Options  # noqa: PLC0415 - as above

        return Options.of(options, self.durability, self.secrecy)
