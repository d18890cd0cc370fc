"""What a store of tasks must be able to do: requests and answers as values, no SQL.

Answers are values, since a running twin or a mismatch is an ordinary answer, not an accident; the only exceptions are
`StoreError` and its kin. The tests of a Store are a conformance suite that any Store must pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from idemreg.model import NO_CHECKSUM, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from idemreg.deciding import Deadlines, Wanted
    from idemreg.model import Origin, Policy, Task, Verdict, Version
    from idemreg.owner import OwnerInfo
    from idemreg.progress import Steps
    from idemreg.query import Instant, Page, Query

__all__ = [
    "Absent",
    "Answer",
    "Backup",
    "CommandOwner",
    "Done",
    "End",
    "Granted",
    "Group",
    "Lost",
    "Mismatch",
    "Present",
    "Readable",
    "Recorded",
    "Refused",
    "Removed",
    "Running",
    "Settlement",
    "Store",
    "Stored",
    "Survey",
    "Transaction",
    "Unknown",
    "Unsure",
]

# --- answers to a claim -----------------------------------------------------------------------------------------


class Granted(NamedTuple):
    """The claim is stored and this process owns the task.

    ``prior`` is the row as it was before (None: there was none), ``policy`` what is stored with the claim: of the
    stored and the asked the stricter. ``to_verify``: granted for the verify hook; the body must not be entered.
    ``note``: of a batch; `Store.enter` must be called before the job, for a task that was not entered is put back.
    ``deadlines``: of a claim with limits; see `idemreg.leasing`.
    """

    task_id: str
    token: int
    attempt: int
    owner: int
    prior: Task | None
    policy: Policy
    to_verify: bool = False
    note: int | None = None
    deadlines: Deadlines | None = None


class Done(NamedTuple):
    """The task is final; the row is durable."""

    task: Task


class Running(NamedTuple):
    """A live owner, or one that nobody can tell about, has the task."""

    task: Task
    owner: OwnerInfo


class Mismatch(NamedTuple):
    """The row belongs to another job, or to other arguments."""

    task: Task


class Refused(NamedTuple):
    """Failed, and held or with its attempts used up; ``is_new``: this claim found its owner dead, and made it so."""

    task: Task
    is_new: bool = False


class Unknown(NamedTuple):
    """Nobody can know whether the effect happened; ``is_new``: this claim found its owner dead, and made it so."""

    task: Task
    is_new: bool = False


class Unsure(NamedTuple):
    """The commit reported an error, and reading again did not show the row: it may or may not be stored."""

    cause: Exception


class Lost(NamedTuple):
    """The claim is not this owner's any more, or the row changed in between; nothing was written."""

    task: Task | None


class Stored(NamedTuple):
    """The stored success of the very task that is wanted: all that a duplicate's answer takes."""

    token: int
    attempt: int
    result: str


class Absent(NamedTuple):
    """There is no row: a claim will most likely insert one."""


Answer: TypeAlias = Granted | Done | Running | Mismatch | Refused | Unknown | Unsure | Lost


# --- the end of a claim -----------------------------------------------------------------------------------------

NOT_ASKED: Final = "OwnerDied: the attempt ended without a finish, and its verify hook was not asked"


class End(NamedTuple):
    """The owner's own end of its claim: what its row becomes. ``attempt`` is what it counts from now on.

    ``was_absent``: there was no row before the claim, and nothing ran under it, so the row that stays binds nobody.
    """

    task_id: str
    token: int
    owner: int
    status: Status
    attempt: int
    result: str | None = None
    error: str | None = None
    durable: bool = True
    verdict: Verdict | None = None  # of the row before a claim that is released: a `retry` that was not used
    was_absent: bool = False

    @classmethod
    def release(cls, claim: Granted, *, durable: bool = True, nothing_ran: bool = False) -> End:
        """Put the task back as it was before ``claim``: failed and unknown stay so, as they were; all else is pending.

        But where a hook was to be asked about a dead owner: its job may have run, so it is unknown from now on.
        ``nothing_ran``: the job was not entered, so a row that was new stays unbound; see `NO_CHECKSUM`.
        """
        prior, attempt = claim.prior, claim.attempt - (not claim.to_verify)
        end = cls(claim.task_id, claim.token, claim.owner, Status.PENDING, attempt, durable=durable)
        if prior is not None and prior.status in (Status.FAILED, Status.UNKNOWN):
            return end._replace(status=prior.status, result=prior.result, error=prior.error, verdict=prior.verdict)
        if claim.to_verify:
            return end._replace(status=Status.UNKNOWN, error=NOT_ASKED)
        return end._replace(was_absent=nothing_ran and (prior is None or prior.checksum == NO_CHECKSUM))


class Recorded(NamedTuple):
    """The end is stored."""

    task_id: str


class Settlement(NamedTuple):
    """An end decided without the owner. ``verifying`` is the token of the settler's own claim for a verify hook.

    ``verdict``: None where such a hook was cut off in its middle, and nobody has answered before: unknown as it was.
    """

    verdict: Verdict | None
    by: str
    evidence: str = ""
    result: str | None = None  # of what happened; or what the attempt left that a verify hook was asked about
    error: str | None = None
    verifying: int | None = None


# --- upkeep -----------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Rows of one status and one job: how many, and when the first and the last of them changed (wall clock, µs)."""

    status: Status
    name: str
    tasks: int
    oldest: int
    newest: int


class Survey(NamedTuple):
    """What a bounded piece of the tasks holds that may be removed, and its newest row of all (None: it is empty)."""

    groups: list[Group]
    newest: int | None
    newest_task_id: str | None
    after: str | None


class Removed(NamedTuple):
    """What one bounded transaction removed. ``after`` continues; None: there is no more."""

    tasks: int
    after: str | None


class Backup(NamedTuple):
    """A copy of the file: where, and how large."""

    path: str
    pages: int
    bytes: int


class Present(NamedTuple):
    """A task of an import that has a row already, which stays as it is."""

    task: Task


# --- the store --------------------------------------------------------------------------------------------------


class Transaction(Protocol):
    """A transaction in which the effects of a job commit together with its finish."""

    def execute(self, sql: str, bindings: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Carry out one statement and give all of its rows."""

    def finish(self, end: End) -> Recorded | Lost | Unsure:
        """Finish the claim in the same transaction, and commit. `Lost`: everything was rolled back."""


class CommandOwner(Protocol):
    """The owner of a command. Its descriptor goes to the command and to nobody else."""

    id: int
    fd: int

    def note_process(self, pid: int) -> bool:
        """Note which process runs the command: should it close the descriptor, its existence still speaks for it.

        False where others have the registry: ask again soon. Hardly waits, since the command's output does meanwhile.
        """

    def leave_to(self, pid: int) -> None:
        """`close`, where the command goes on: its claim is nobody's here. Its lock and that process keep its task."""

    def close(self) -> None:
        """Drop this process's share of the lock once the last claim's end is stored; the command keeps its own."""


class Readable(Protocol):
    """A place that keeps tasks, for whoever only looks. Safe to share between threads; reopens in a forked child."""

    def get(self, task_ids: Sequence[str], *, durable: bool | None = None) -> list[Task | None]:
        """The rows, in order. What it returns is ``durable``, or (None) as the place's reads are."""

    def page(self, query: Query, after: str | None, limit: int) -> Page:
        """At most ``limit`` tasks behind the task_id ``after``."""

    def count(self) -> dict[Status, int]:
        """How many tasks are in each status that occurs."""

    def instant(self) -> Instant:
        """Now, as ages are counted."""

    def floor(self) -> int:
        """The token floor: every token given from now on is above it."""

    def origin(self) -> Origin:
        """The random id of the place, part of every downstream key, and of its checksums' key."""

    def owner(self, task: Task) -> OwnerInfo | None:
        """Who runs the task, and whether it lives; None where nobody does."""

    def downstream_key(self, task_id: str) -> str:
        """A key for receivers: the same over all attempts of the task, different in every other registry."""

    def close(self) -> None:
        """Close what is open. Claims that are not finished keep their owner's lock until they are."""


class Store(Readable, Protocol):
    """A place that keeps tasks: what a `Readable` can do, and all that writes."""

    def begin(self, wanted: Wanted) -> Stored | Granted | Absent | None:
        """The two common cases, in few steps: the stored success of the very task, or the claim of a new one.

        `Absent` where there is no row and it takes a `claim`, None where it takes a `look`.
        """

    def look(self, wanted: Wanted) -> Answer | None:
        """What a plain read can answer to a claim; None where only a write can. Takes no lock: duplicates are quick."""

    def claim(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """Claim each, in order. What is `Granted` with ``durable`` is on disk when this returns, but under rerun."""

    def claim_batch(self, wanted: Sequence[Wanted]) -> list[Answer]:
        """The same for jobs that are entered one after the other: each by `enter`, before it begins."""

    def enter(self, claim: Granted) -> None:
        """Note that the job of a claim is entered. `StoreError` where that cannot be noted: it must not begin."""

    def finish(self, ends: Sequence[End]) -> list[Recorded | Lost | Unsure]:
        """End each claim, in order: a compare-and-set on task, token, owner and `running`."""

    def finish_one(self, end: End) -> Recorded | Lost | Unsure:
        """End one claim likewise; the common success in few steps."""

    def together(self, requests: Sequence[Wanted | End]) -> list[object]:
        """Each as by `begin` or `finish_one`, in one transaction. In place of an answer its error, not raised."""

    def abandon(self, end: End) -> bool:
        """End a claim as soon as the store can write, now or later. Raises nothing; safe in a finaliser.

        False where it is known that the claim had ended before, so that nothing was changed.
        """

    def own_byte(self) -> CommandOwner:
        """A new owner with a lock and a descriptor of its own, for a command that inherits it."""

    def settle(self, task_id: str, settlement: Settlement) -> Task | Lost:
        """End the task without its owner. `Lost` where its status does not allow the verdict."""

    def add(self, wanted: Wanted) -> Task:
        """Make sure that the row exists, `pending` where it is new."""

    def forget(self, task_id: str, *, force: bool, seen: Version | None = None) -> Task | Lost:
        """Remove the row, raising the token floor past its token. `Lost` by its status, or where it is not ``seen``."""

    def survey(self, query: Query, at: Instant, after: str | None) -> Survey:
        """Count what `remove` would take in a bounded piece of the tasks behind ``after``. Takes no lock."""

    def remove(self, query: Query, at: Instant, after: str | None) -> Removed:
        """Remove a bounded number of final rows behind ``after`` whose ``keep_for`` has passed, in one transaction.

        With ``older_ms`` also rows that are kept for ever, and none that is younger. The same transaction raises the
        token floor past every token that it removes.
        """

    def put(self, tasks: Sequence[Task], floor: int, origin: Origin, steps: Steps = None) -> list[Present | None]:
        """Insert the rows and their steps, in one transaction; `Present` for each that has a row already, in order.

        Raises the token floor to ``floor`` and past all of their tokens. A place without any row takes over
        ``origin``, so that their downstream keys stay; `ChecksumKeyError` where it has rows, of another checksum key.
        """

    def transaction(self, claim: Granted, *, durable: bool) -> AbstractContextManager[Transaction]:
        """Open a transaction for the effects of the job; rolled back unless `Transaction.finish` committed it."""
