"""The registry for asynchronous callers, under asyncio or trio: the names of `Registry`, awaited.

    registry = AsyncRegistry("jobs.db")

    @registry.idempotent("coupon:{user_id}:{day}")
    async def issue_coupon(user_id: int, day: str) -> dict: ...

    async with registry.claim("order:42", payload=order) as claim:
        claim.result = await ship(order)

Every call of the store is made on a thread of the registry's own, and waited for to its end: cancelling a caller
between the claim and the job puts the task back, in the job lets ``on_crash`` decide, in the finish changes nothing.
`purge`, `backup` and `import_lines` end early, between two of their chunks.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, cast, overload

from idemreg.async_claim import AsyncClaim, AsyncTransaction, hand_over
from idemreg.async_claiming import Claiming
from idemreg.async_clock import AsyncClock
from idemreg.attempt import run_walk
from idemreg.batch import claim_many, finish_many, handle, messages_of, requests
from idemreg.batching import abatches
from idemreg.claim import current_claim as _current_claim
from idemreg.listing import PAGE_TASKS
from idemreg.overtime import within_time
from idemreg.registry import Registry
from idemreg.request import check_job, job_name, wanted
from idemreg.rerunning import AsyncSweep
from idemreg.slotted import AsyncSlots
from idemreg.sqlite import backend as _backend  # noqa: F401 - now, and not by the first call on an event loop's thread
from idemreg.tagged import canonical
from idemreg.walk import adrive

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
    from datetime import timedelta
    from types import TracebackType

    from idemreg.batch import Handled
    from idemreg.claim import Terms
    from idemreg.clock import Clock
    from idemreg.deciding import Outcome
    from idemreg.doctor import Finding
    from idemreg.errors import IdemregError
    from idemreg.events import OnEvent
    from idemreg.exchange import Imported
    from idemreg.idempotent import Checksum, Decorator, TaskIdSource
    from idemreg.keyed import ErrorDetail
    from idemreg.manage import ResolveVerdict
    from idemreg.model import Status, Task, Verdict
    from idemreg.options import CallOptions, Durability
    from idemreg.owner import OwnerInfo
    from idemreg.progress import Step
    from idemreg.purge import Purge
    from idemreg.serials import AsyncSerials
    from idemreg.sqlite.checkpoints import Checkpoint, Mode
    from idemreg.store import Backup

__all__ = ["AsyncClaim", "AsyncRegistry", "AsyncTransaction", "current_claim"]

M = TypeVar("M")
R = TypeVar("R")
T = TypeVar("T")


def current_claim() -> AsyncClaim:
    """The claim under which the calling coroutine runs. RuntimeError outside of any job."""
    return cast("AsyncClaim", _current_claim())


class AsyncRegistry(AsyncClock, AsyncSlots, AsyncSweep):
    """A registry of tasks in one SQLite file, for coroutines; the options are those of `Registry`.

    A ``job``, a verify hook or a checksum that is a plain function is called on the event loop's thread.
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
        self._registry = Registry(
            path,
            create=create,
            durability=durability,
            busy_timeout=busy_timeout,
            clock=clock,
            on_event=on_event,
            checkpointer=checkpointer,
            checksum_key=checksum_key,
            error_detail=error_detail,
            page_checksums=page_checksums,
            unsafe_path=unsafe_path,
        )

    @classmethod
    def of(cls, registry: Registry) -> Self:
        """The same registry for coroutines: one pool of connections, and one owner."""
        self = cls.__new__(cls)
        self._registry = registry
        return self

    @property
    def registry(self) -> Registry:
        """The registry underneath, for callers in threads."""
        return self._registry

    async def _call(self, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:  # noqa: ANN401 - any method's
        return cast("R", await self._registry.offload.call(functools.partial(call, *args, **kwargs)))

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
        """Decorate a coroutine function (or a plain one, whose calls then block); see `Registry.idempotent`."""
        decorate = self._registry.idempotent
        return decorate(task_id, name=name, exclude=exclude, checksum=checksum, recover=recover, **options)

    @overload
    async def run(
        self,
        task_id: str,
        job: Callable[[], Awaitable[R]],
        *,
        payload: object = None,
        name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Outcome[R]: ...

    @overload
    async def run(
        self,
        task_id: str,
        job: Callable[[], R],
        *,
        payload: object = None,
        name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Outcome[R]: ...

    async def run(
        self,
        task_id: str,
        job: Callable[[], Any],
        *,
        payload: object = None,
        name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Outcome[Any]:
        """Run ``job`` once for the task, and await what it returns; see `Registry.run`."""
        terms = self._terms(options)
        check_job(job, is_awaited=True)
        called = job_name(job) if name is None else name
        request = wanted(task_id, called, canonical(payload), terms.options)
        walk = run_walk(terms, request, within_time(terms, job), (), {})
        return await adrive(walk, self._registry.offload.host())

    def claim(
        self, task_id: str, *, payload: object = None, name: str = "", **options: Unpack[CallOptions]
    ) -> Claiming:
        """Claim the task: ``await`` it, or enter it by ``async with``, which settles it; see `Registry.claim`."""
        terms = self._terms({**options, "on_duplicate": "raise"})
        return Claiming(terms, wanted(task_id, name, canonical(payload), terms.options))

    async def claim_many(
        self, items: Iterable[tuple[str, object]], *, name: str = "", **options: Unpack[CallOptions]
    ) -> list[AsyncClaim | Outcome[Any] | IdemregError]:
        """Claim tasks, each (task_id, payload), by one commit; see `Registry.claim_many`."""
        terms = self._terms(options, for_batch=True)
        walk = hand_over(claim_many(terms, requests(items, name, terms.options)))
        return await adrive(walk, self._registry.offload.host())

    async def finish_many(self, ended: Iterable[tuple[AsyncClaim, object]]) -> list[Outcome[Any] | IdemregError]:
        """End claims, each (claim, result), as succeeded by one commit; see `Registry.finish_many`."""
        return await adrive(finish_many(list(ended)), self._registry.offload.host())

    async def consume(
        self,
        messages: AsyncIterable[M | None] | Iterable[M | None],
        job: Callable[[M], Awaitable[R]],
        *,
        task_id: Callable[[M], str],
        payload: Callable[[M], object] | None = None,
        batch: int = 100,
        name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[Handled[M, R], None]:
        """Run ``job`` once for each message's task, one after the other, in batches; see `Registry.consume`.

        Who may leave it early uses `contextlib.aclosing`, which closes an asynchronous generator of messages as well.
        """
        check_job(job, is_awaited=True)
        terms, called = self._terms(options, for_batch=True), job_name(job) if name is None else name
        async with contextlib.aclosing(abatches(messages, batch)) as batches:
            async for some in batches:
                walk = handle(terms, messages_of(some, task_id, payload, called, terms.options), job)
                for handled in await adrive(walk, self._registry.offload.host()):
                    yield handled

    def serials(self, prefix: str) -> AsyncSerials:
        """Ids that are unique everywhere and never go back; await `next`, or iterate. See `Registry.serials`."""
        from idemreg.serials import AsyncSerials  # noqa: PLC0415 - few programs need it

        return AsyncSerials(self._registry.serials(prefix), self._registry.offload)

    # --- look ---------------------------------------------------------------------------------------------------

    async def get(self, task_id: str) -> Task | None:
        """The task's row, or None. What it says is durable."""
        return await self._call(self._registry.get, task_id)

    def tasks(
        self,
        *,
        status: Status | Iterable[Status] | None = None,
        prefix: str = "",
        name: str | None = None,
        older_than: float | timedelta | None = None,
        newer_than: float | timedelta | None = None,
        dead: bool = False,
    ) -> AsyncGenerator[Task, None]:
        """All tasks in the order of their task_id, read in pages; see `Registry.tasks`."""
        found = self._registry.tasks(
            status=status, prefix=prefix, name=name, older_than=older_than, newer_than=newer_than, dead=dead
        )
        return self._each(found)

    async def count(self) -> dict[Status, int]:
        """How many tasks are in each status that occurs."""
        return await self._call(self._registry.count)

    async def owner(self, task: Task) -> OwnerInfo | None:
        """Who runs the task, and whether it lives; None where nobody does."""
        return await self._call(self._registry.owner, task)

    async def steps(self, task_id: str) -> list[Step]:
        """The pieces of the task's job that are done, in the order in which they were saved."""
        return await self._call(self._registry.steps, task_id)

    # --- operate ------------------------------------------------------------------------------------------------

    async def add(self, task_id: str, *, payload: object = None, name: str = "") -> Task:
        """Make sure that the task has a row, `pending` where it is new."""
        return await self._call(self._registry.add, task_id, payload=payload, name=name)

    async def resolve(
        self,
        task_id: str,
        verdict: ResolveVerdict | Verdict,
        *,
        result: object = None,
        evidence: str = "",
        by: str = "operator",
    ) -> Task:
        """End an unknown task by what you know; see `Registry.resolve`."""
        return await self._call(self._registry.resolve, task_id, verdict, result=result, evidence=evidence, by=by)

    async def retry(self, task_id: str, *, reason: str = "", by: str = "operator") -> Task:
        """Allow a failed task one more attempt, also where its failure is held or its attempts are used up."""
        return await self._call(self._registry.retry, task_id, reason=reason, by=by)

    async def skip(self, task_id: str, reason: str, *, by: str = "operator") -> Task:
        """End a pending task for good: it will not run."""
        return await self._call(self._registry.skip, task_id, reason, by=by)

    async def cancel(self, task_id: str, *, reason: str = "", by: str = "operator") -> Task:
        """End a pending, failed or unknown task for good: it will not run again."""
        return await self._call(self._registry.cancel, task_id, reason=reason, by=by)

    async def forget(self, task_id: str, *, force: bool = False) -> Task:
        """Remove the row, and give it back; see `Registry.forget`."""
        return await self._call(self._registry.forget, task_id, force=force)

    async def checkpoint(self, mode: Mode = "PASSIVE", *, wait: float | timedelta | None = None) -> Checkpoint:
        """Move the -wal into the database; see `Registry.checkpoint`."""
        return await self._call(self._registry.checkpoint, mode, wait=wait)

    async def doctor(self, *, full: bool = False) -> list[Finding]:
        """Examine the file and all around it, and change nothing; see `idemreg.doctor.examine`."""
        return await self._call(self._registry.doctor, full=full)

    # --- keep ---------------------------------------------------------------------------------------------------

    async def purge(
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
        """Remove ended tasks whose ``keep_for`` has passed; see `Registry.purge`. Callbacks run on its thread."""
        purge = functools.partial(
            self._registry.purge,
            status=status,
            prefix=prefix,
            name=name,
            older_than=older_than,
            dry_run=dry_run,
            approve=approve,
        )
        return cast("Purge", await self._registry.offload.in_chunks(purge, progress))

    async def backup(
        self, path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
    ) -> Backup:
        """Copy the registry, as it is at one instant, to ``path``; see `Registry.backup`."""
        backup = functools.partial(self._registry.backup, path)
        return cast("Backup", await self._registry.offload.in_chunks(backup, progress))

    def export_lines(
        self,
        *,
        status: Status | Iterable[Status] | None = None,
        prefix: str = "",
        name: str | None = None,
        older_than: float | timedelta | None = None,
        newer_than: float | timedelta | None = None,
    ) -> AsyncGenerator[str, None]:
        """All tasks as lines of JSON, for `import_lines`; see `Registry.export_lines`."""
        lines = self._registry.export_lines(
            status=status, prefix=prefix, name=name, older_than=older_than, newer_than=newer_than
        )
        return self._each(lines)

    async def import_lines(
        self, lines: Iterable[str | bytes], *, progress: Callable[[Imported], None] | None = None
    ) -> Imported:
        """Insert the tasks of an export that have no row here; see `Registry.import_lines`."""
        import_lines = functools.partial(self._registry.import_lines, lines)
        return cast("Imported", await self._registry.offload.in_chunks(import_lines, progress))

    async def _each(self, found: Iterator[T]) -> AsyncGenerator[T, None]:
        """What the iterator finds on another thread, a page at a time."""
        while True:
            page: list[T] = await self._call(list, itertools.islice(found, PAGE_TASKS))
            for one in page:
                yield one
            if not page:
                return

    # --- open and close -----------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the file now, and create it where that is allowed; otherwise the first use does."""
        await self._call(self._registry.open)
        return self

    async def close(self) -> None:
        """Close the file. A claim that has not ended keeps its lock, and can end still; a later use opens anew."""
        await self._call(self._registry.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncRegistry({str(self._registry.path)!r})"

    def _terms(self, options: CallOptions, *, for_batch: bool = False) -> Terms:
        checked = self._registry.checked(options)
        return self._registry.async_terms(checked.for_batch() if for_batch else checked)
