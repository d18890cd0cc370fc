"""What people ask and do about tasks: open, look, operate, keep. One line a method, no logic.

`Registry` is built on it and adds what runs jobs, which a command such as `idemreg show` need not import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from idemreg.clock import Clock, seconds
from idemreg.errors import require
from idemreg.listing import every, query_of
from idemreg.lockfile import importing
from idemreg.model import Task, Verdict, is_durable
from idemreg.sqlite.opening import Opening
from idemreg.sqlite.reading import Reader
from idemreg.template import check_task_id

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime, timedelta
    from types import TracebackType

    from idemreg.audit import Audited
    from idemreg.clockcheck.verdict import ClockBands, ClockCheck
    from idemreg.doctor import Finding
    from idemreg.errors import ClockError
    from idemreg.events import Teller
    from idemreg.exchange import Imported
    from idemreg.keyed import KeyNote
    from idemreg.manage import ResolveVerdict
    from idemreg.model import Status
    from idemreg.options import Durability
    from idemreg.owner import OwnerInfo
    from idemreg.progress import Step
    from idemreg.purge import Purge
    from idemreg.serials import Serials
    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.checkpoints import Checkpoint, Mode
    from idemreg.store import Backup, Store

__all__ = ["Operations"]


class Operations:
    """The operator's half of a registry; see `Registry` for the parameters."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        durability: Durability = "full",
        busy_timeout: float | timedelta = 10,
        clock: Clock | None = None,
        unsafe_path: bool = False,
        key_note: KeyNote | None = None,
        page_checksums: bool = False,
    ) -> None:
        # ``key_note``: what the file must say of the checksums' key; None: nothing here makes a checksum. No docstring:
        # `help` would show it as that of `Registry`, which has no such parameter.
        is_durable(durability)
        self.path: Final = path
        self.durability: Final = durability
        self.clock: Final = clock or Clock()
        self.unsafe_path: Final = unsafe_path
        self._opening = Opening(
            path,
            create=create,
            busy_s=seconds(busy_timeout, what="busy_timeout"),
            clock=self.clock,
            reads_durable=durability == "full",
            unsafe_path=unsafe_path,
            key_note=key_note,
            page_checksums=page_checksums,
        )
        self._reader = Reader(self._opening)
        self._made: Final[dict[str, SqliteStore]] = {}  # see `_make_whole`
        self._whole: SqliteStore | None = None  # asked for by `_store`
        self._teller: Teller | None = None
        self.clock_bands: ClockBands | None = None  # of `check_clock`, to be set; None: the usual ones
        self.clock_found: ClockCheck | None = None  # by the last `check_clock` of this registry

    @property
    def store(self) -> Store:
        """The whole store underneath, for what is built on a registry."""
        return self._store

    @property
    def reader(self) -> Reader:
        """The half of it that only looks, likewise: whoever does no more takes this, and the other is not imported."""
        return self._reader

    @property
    def _store(self) -> SqliteStore:
        """The whole store, made when it is first asked for: who only looks does without."""
        return self._whole or self._make_whole()

    def _make_whole(self) -> SqliteStore:
        with importing():
            from idemreg.sqlite.backend import SqliteStore  # noqa: PLC0415 - who only looks needs none of it

        # One step in place of a lock, on which an event loop's thread would wait, and a forked child for ever: threads
        # that come at once may each make a store, and all take the first one that was put here.
        made = self._made.setdefault("store", SqliteStore(self._opening))
        # Others find it only once it hears of the commits. Who is interrupted before leaves that to the next; threads
        # that come here together have it told one after the other, which is as good as once.
        self._whole = made.serve()
        return made

    @property
    def teller(self) -> Teller | None:
        """What tells `on_event`, for what is built on a registry; None where nobody listens."""
        return self._teller

    # --- open and close -----------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Open the file now, and create it where that is allowed; otherwise the first use does."""
        self._opening.opened()
        return self

    def close(self) -> None:
        """Close the file. A claim that has not ended keeps its lock, and can end still; a later use opens anew."""
        self._opening.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    # --- look ---------------------------------------------------------------------------------------------------

    def get(self, task_id: str) -> Task | None:
        """The task's row, or None. What it says is durable."""
        return self._reader.get([check_task_id(task_id)])[0]

    def tasks(
        self,
        *,
        status: Status | Iterable[Status] | None = None,
        prefix: str = "",
        name: str | None = None,
        older_than: float | timedelta | None = None,
        newer_than: float | timedelta | None = None,
        dead: bool = False,
    ) -> Iterator[Task]:
        """All tasks in the order of their task_id, read in pages: no transaction stays open in between.

        ``status``: one or several. ``prefix``: the beginning of the task_id. ``name``: of the job. ``older_than``,
        ``newer_than``: since the last change. ``dead``: dead letters only, failed with their attempts used up.
        """
        query = query_of(
            status=status, prefix=prefix, name=name, older_than=older_than, newer_than=newer_than, dead=dead
        )
        return every(self._reader, query)

    def count(self) -> dict[Status, int]:
        """How many tasks are in each status that occurs."""
        return self._reader.count()

    def owner(self, task: Task) -> OwnerInfo | None:
        """Who runs the task, and whether it lives; None where nobody does."""
        require(task, Task, "a task is what `get` and `tasks` give")
        return self._reader.owner(task)

    def steps(self, task_id: str) -> list[Step]:
        """The pieces of the task's job that are done, in the order in which they were saved; see `Claim.run_step`."""
        return self._reader.steps(check_task_id(task_id))

    # --- operate ------------------------------------------------------------------------------------------------

    def resolve(
        self,
        task_id: str,
        verdict: ResolveVerdict | Verdict,
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
        from idemreg import manage  # noqa: PLC0415 - what only looks need not import it

        return manage.resolve(self._store, task_id, verdict, result, evidence, by)

    def retry(self, task_id: str, *, reason: str = "", by: str = "operator") -> Task:
        """Allow a failed task one more attempt, also where its failure is held or its attempts are used up."""
        return self._settle(task_id, Verdict.RETRY, reason, by)

    def skip(self, task_id: str, reason: str, *, by: str = "operator") -> Task:
        """End a pending task for good: it will not run."""
        return self._settle(task_id, Verdict.SKIPPED, reason, by)

    def cancel(self, task_id: str, *, reason: str = "", by: str = "operator") -> Task:
        """End a pending, failed or unknown task for good: it will not run again."""
        return self._settle(task_id, Verdict.CANCELLED, reason, by)

    def _settle(self, task_id: str, verdict: Verdict, reason: str, by: str) -> Task:
        from idemreg import manage  # noqa: PLC0415

        return manage.settle(self._store, task_id, verdict, reason, by)

    def forget(self, task_id: str, *, force: bool = False) -> Task:
        """Remove the row, and give it back: the task may run again, under larger tokens.

        An unknown task, and a running one whose owner is dead, only by ``force``; one that runs, never.
        """
        from idemreg import manage  # noqa: PLC0415

        return manage.forget(self._store, task_id, force=force)

    def checkpoint(self, mode: Mode = "PASSIVE", *, wait: float | timedelta | None = None) -> Checkpoint:
        """Move the -wal into the database. PASSIVE waits for nobody; FULL, RESTART and TRUNCATE wait for others.

        ``wait``: for how long, if not for the busy time-out. They keep writers out meanwhile.
        """
        done = self._store.checkpoint(mode, busy_s=None if wait is None else seconds(wait, what="wait"))
        if self._teller is not None:
            self._teller.checkpointed(done)
        return done

    def doctor(self, *, full: bool = False) -> list[Finding]:
        """Examine the file and all around it, and change nothing; see `idemreg.doctor.examine`."""
        from idemreg.doctor import examine  # noqa: PLC0415 - a program that is well never needs it

        return examine(self._opening.path, full=full, clock=self.clock, unsafe_path=self.unsafe_path)

    def serials(self, prefix: str) -> Serials:
        """Ids such as ``COUP-1K193SE6DHX00VFD4BY5R5V``: unique everywhere, and sorted as text in the order of giving.

        `next` (or iterating) gives one. They increase within the process and over its restarts, whatever the wall clock
        does; behind an older copy of the file they may go back to where that had come, and none comes twice.
        ``prefix``: 1 to 8 ASCII letters, digits or underscores (`PrefixError`), so a serial has at most 32 characters.
        See `idemreg.serials`.
        """
        from idemreg.serials import serials  # noqa: PLC0415 - few programs need it

        return serials(self._store, self._opening.path, prefix, self.clock, durable=self.durability == "full")

    # --- slots --------------------------------------------------------------------------------------------------

    def audit(self, name: str, *, since: datetime | None = None, until: datetime | None = None) -> Iterator[Audited]:
        """Every slot of a schedule as it should be and as it is, in order; see `idemreg.audit`.

        After ``since`` (the schedule's beginning), up to ``until`` (now). It is well where all of them are `is_sound`.
        A generator, which reads a page of rows at a time; `ScheduleError` at once where no slot can lie in that time.
        """
        from idemreg.audit import audit  # noqa: PLC0415 - most programs have no schedule
        from idemreg.slots import seconds_of  # noqa: PLC0415

        first, last = (None if one is None else seconds_of(one) for one in (since, until))
        return audit(self._store, name, first, last, self.clock.wall_us())

    def pause(self, name: str) -> None:
        """Until `resume` no slot of the schedule starts, and those that come due are skipped as `paused`."""
        from idemreg import pausing  # noqa: PLC0415 - as above

        pausing.pause(self._store, name)

    def resume(self, name: str) -> None:
        """The schedule goes on with the next slot. What came due since the last look at it was paused.

        `ClockError`, and it stays paused, while the clock is in doubt: by it nobody can say what that was.
        """
        from idemreg import pausing  # noqa: PLC0415 - as above

        def now_us() -> int:
            if (problem := self._doubt_of_clock()) is not None:
                raise problem
            return self.clock.wall_us()

        pausing.resume(self._store, name, now_us)

    # --- keep ---------------------------------------------------------------------------------------------------

    def purge(
        self,
        *,
        status: Status | Iterable[Status] | None = None,
        prefix: str = "",
        name: str | None = None,
        older_than: float | timedelta | None = None,
        dry_run: bool = False,
        approve: Callable[[Purge], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Purge:
        """Remove ended tasks (succeeded, skipped, cancelled) whose ``keep_for`` has passed; they may then run anew.

        Tasks that are kept for ever stay, unless ``older_than`` is given; then they go as well, and nothing that
        changed since; but a slot stays until its schedule has come to it. Ages count by time since boot, and by date
        only for rows of earlier boots: `ClockError` where any task has a date that is still to come. ``approve`` is
        asked with what was found; ``dry_run`` removes nothing. Goes in small transactions, each of which raises the
        token floor; ``progress`` gets the number removed so far.
        """
        from idemreg.purge import purge  # noqa: PLC0415 - few programs need it

        query = query_of(status=status, prefix=prefix, name=name, older_than=older_than)
        return purge(self._store, self.clock, query, dry_run=dry_run, approve=approve, progress=progress)

    def backup(self, path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> Backup:
        """Copy the registry, as it is at one instant and while others work, to ``path``, which must not exist.

        The copy opens as a registry; its running tasks stay running there, for nobody can tell about their owners.
        ``path`` appears complete and synced, or not at all. ``progress`` gets the pages copied and the pages in all.
        """
        return self._store.backup(path, progress)

    def export_lines(
        self,
        *,
        status: Status | Iterable[Status] | None = None,
        prefix: str = "",
        name: str | None = None,
        older_than: float | timedelta | None = None,
        newer_than: float | timedelta | None = None,
    ) -> Iterator[str]:
        """All tasks as lines of JSON, for `import_lines`: a header, one line a task and each of its steps, an end.

        Read in pages, so a task that changes meanwhile is exported as it was before or after; `backup` is one instant.
        """
        from idemreg.exchange import export_lines  # noqa: PLC0415 - few programs need it

        query = query_of(status=status, prefix=prefix, name=name, older_than=older_than, newer_than=newer_than)
        return export_lines(self._store, query)

    def import_lines(
        self, lines: Iterable[str | bytes], *, progress: Callable[[Imported], None] | None = None
    ) -> Imported:
        """Insert the tasks of an export that have no row here; what has one stays as it is.

        A task that was running becomes unknown. Tokens stay, and those given from now on are above all of them; a
        registry without tasks takes over the export's id, and so the downstream keys. `ImportLineError` names the line
        that is none; what came before it is imported. Goes in small transactions; importing again goes on.
        """
        from idemreg.exchange import import_lines  # noqa: PLC0415 - few programs need it

        return import_lines(self._store, lines, progress)

    # --- the clock ----------------------------------------------------------------------------------------------

    def check_clock(self, bands: ClockBands | None = None) -> ClockCheck:
        """Say whether the wall clock can be trusted to tell when a slot is due, and what a scheduler may do by it.

        Called before scheduled runs. By the bands of ``clock_bands``: a small deviation extends execution windows; a
        large one, a jump by as much, or a clock that is behind the newest stored time raises an alarm, a task that is
        `unknown`, and until that is settled scheduling and catch-up are suspended. A source that knows the time settles
        it by itself. That nobody can tell suspends nothing. No claim depends on any of it.

        Reads all tasks, for their times. ``bands``: tell what would follow by others; no alarm is raised or ends.
        """
        from idemreg.clockcheck.check import appraise  # noqa: PLC0415 - for schedules only

        if bands is not None:
            return appraise(self._store, self.clock, bands)
        return self._checked_clock(is_thorough=True)

    def _checked_clock(self, *, is_thorough: bool) -> ClockCheck:
        from idemreg.clockcheck.check import check  # noqa: PLC0415 - as above

        found = check(self._store, self.clock, self._teller, self.clock_bands, is_thorough=is_thorough)
        self.clock_found = found
        return found

    def _doubt_of_clock(self) -> ClockError | None:
        """Why nobody can tell by the clock what has come due, or None. Raises no alarm: `check_clock` does."""
        from idemreg.clockcheck.check import doubt  # noqa: PLC0415 - as above

        return doubt(self._store, self.clock, self._teller, self.clock_bands)

    def confirm_clock(self, *, evidence: str = "", by: str = "operator") -> ClockCheck:
        """Trust the wall clock as it is now: the alarm is settled, and later looks compare with this one."""
        from idemreg.clockcheck.check import confirm  # noqa: PLC0415 - as above

        return confirm(self._store, self.clock, self._teller, self.clock_bands, evidence, by)
