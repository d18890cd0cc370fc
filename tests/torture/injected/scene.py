"""One call under a fault: what it may do, and the account of what was entered and what was acknowledged.

The account is independent of the registry: bodies count themselves, acknowledgements are noted as they come, and rows
are read by SQLite alone.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from idemreg import Registry, Status, current_claim
from tests.torture.injected import shim
from tests.torture.injected.states import BUSY_S, RESULT, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from idemreg import Clock
    from tests.torture.injected.shim import Fault

__all__ = ["JOBS", "NAME", "Row", "Scene", "rows"]

NAME: Final = "job"

# The tasks whose bodies may be entered: so many that a count needs no new memory.
JOBS: Final = (
    *("new", "new-2", "new-3", "pending", "failed", "dead", "unknown", "done", "large", "after", "after-close"),
)


class Row(NamedTuple):
    """What is stored of a task, as SQLite alone reads it."""

    status: Status
    token: int
    attempt: int
    result: str | None


_SELECT: Final = (
    "SELECT task_id, status, token, attempt, CASE WHEN is_large THEN (SELECT result FROM idempotent_large AS l"
    " WHERE l.task_id = t.task_id) ELSE result END FROM idempotent_log AS t"
)


def rows(path: str) -> dict[str, Row]:
    """All rows, and the proof that the file is whole. Leaves the files as they are."""
    with _opened(path) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
        assert found == [("ok",)], f"the file is damaged: {found[0][0]}"
        if not connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
            return {}
        return {task_id: Row(_STATUS[status], *rest) for task_id, status, *rest in connection.execute(_SELECT)}


def row_of(path: str, task_id: str) -> Row | None:
    with _opened(path) as connection:
        for _, status, *rest in connection.execute(f"{_SELECT} WHERE task_id = ?", (task_id,)):
            return Row(_STATUS[status], *rest)
    return None


_STATUS: Final = {int(status): status for status in Status}


@contextlib.contextmanager
def _opened(path: str) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        yield connection
    finally:
        connection.close()


class Scene:
    """What a case gets: a registry, bodies that count themselves, and a place to note what it was told."""

    def __init__(self, path: str, fault: Fault, clock: Clock | None, before: dict[str, Row], bodies: list[int]) -> None:
        self.path = path
        self.before = before
        self.bodies = bodies
        self.clock = clock
        self.fault = fault
        self.entered = dict.fromkeys(JOBS, 0)
        self.failed = dict.fromkeys(JOBS, 0)  # bodies that have raised
        self.promised: dict[str, tuple[Status | None, bool]] = {}  # task -> its status, and whether that is durable
        self.tried: dict[str, tuple[Status | None, ...]] = {}  # task -> what an unsure call may have made of it
        self.problems: list[str] = []
        self.backup = ""
        self.may_rerun = False
        self.has_begun = False  # the block of a claim, before its body: a release that is not stored is no proof there
        self.is_block = False  # the body is a block of the case itself
        self.looks: list[int] = []  # descriptors of the judge's
        self.registry = self.opened()

    def opened(self, **options: Any) -> Registry:
        return Registry(self.path, busy_timeout=BUSY_S, clock=self.clock, **options)

    def close_looks(self) -> None:
        """Close what the judge has looked through."""
        while self.looks:
            os.close(self.looks.pop())

    # --- what a case notes --------------------------------------------------------------------------------------------

    def check(self, is_well: object, problem: str) -> None:
        if not is_well:
            self.problems.append(problem)

    def tries(self, task_id: str, *statuses: Status | None) -> None:
        """From now on, and until something is promised, the row may be as before, or so."""
        self.tried[task_id] = statuses

    def tells(self, task_id: str, status: Status | None, *, durable: bool = True) -> None:
        """The registry has said so."""
        self.promised[task_id] = (status, durable)
        if durable and self.fault.wal_dirty:
            self.problems.append(f"{task_id} was acknowledged before its sync")

    def job(
        self, task_id: str, error: BaseException | None = None, *, result: Any = RESULT, durable: bool = True
    ) -> Callable[[], Any]:
        """A body that counts itself, and looks at once whether its claim is stored."""
        fault, entered, failed, bodies = self.fault, self.entered, self.failed, self.bodies

        def body() -> Any:
            entered[task_id] += 1
            armed = fault.armed
            fault.armed = 0
            if fault.left > shim.FAR:  # nothing is to fail
                bodies.append(fault.seen)
            try:
                self._is_claimed(task_id, durable=durable)
            finally:
                fault.armed = armed
            if error is not None:
                failed[task_id] += 1
                raise error
            return result

        return body

    def _is_claimed(self, task_id: str, *, durable: bool) -> None:
        row = row_of(self.path, task_id)
        claim = current_claim()
        if row is None or row.status is not Status.RUNNING or row.token != claim.token:
            self.problems.append(f"the body of {task_id} was entered without its claim: {row}")
        if durable and self.fault.wal_dirty:
            self.problems.append(f"the body of {task_id} was entered before its claim was synced")

    def run(
        self, task_id: str, error: BaseException | None = None, *, registry: Registry | None = None, **options: Any
    ) -> None:
        """Run the task, and note what came of it."""
        durable = options.get("on_crash") != "rerun"
        self.tries(task_id, Status.RUNNING, Status.PENDING, Status.UNKNOWN)
        job = self.job(task_id, error, durable=durable)
        outcome = (registry or self.registry).run(task_id, job, name=NAME, **options)
        self.tells(task_id, Status.SUCCEEDED)
        if not outcome.replayed and outcome.result != RESULT:
            self.problems.append(f"{task_id} gave another result")

    @staticmethod
    def failure() -> JobError:
        return JobError("as it was told to")
