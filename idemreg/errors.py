"""Every error idemreg raises: one base, one class a situation.

Each carries the ``task_id`` it speaks of (where there is one), a ``hint`` that names the next thing to do, and three
facts a caller may act on without reading a message: ``code`` (stable, for machines), ``exit_code`` (of the command
line) and ``retryable``: may the same call succeed later with nobody doing anything? A queue consumer is therefore
``except IdemregError as e: message.nack(requeue=e.retryable)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    # For types only: errors stand on the lowest floor and import nothing at run time.
    from idemreg.deciding import Outcome
    from idemreg.model import Task
    from idemreg.owner import OwnerInfo

__all__ = [
    "ArgumentError",
    "ChecksumKeyError",
    "ChecksumMismatchError",
    "ClaimLostError",
    "ClockError",
    "CommandNotExecutableError",
    "CommandNotFoundError",
    "FinishNotRecordedError",
    "IdemregError",
    "ImportLineError",
    "PrefixError",
    "RecoveryError",
    "ResultError",
    "ScheduleError",
    "StepError",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StorePathError",
    "StoreVersionError",
    "SyncFailedError",
    "TaskDoneError",
    "TaskFailedError",
    "TaskIdError",
    "TaskRunningError",
    "TaskTimeoutError",
    "TaskUnknownError",
    "TransitionError",
]


class IdemregError(Exception):
    """The base of every error of idemreg.

    Survives pickling (Celery and multiprocessing carry errors between processes): everything but the message is
    optional and travels in ``__dict__``.
    """

    code: ClassVar[str] = "error"
    exit_code: int = 1
    retryable: bool = False
    hint: str = ""
    task_id: str | None = None

    def __init__(self, message: str, *, task_id: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        if task_id is not None:
            self.task_id = task_id
        if hint is not None:
            self.hint = hint

    @property
    def message(self) -> str:
        """What happened, without the hint."""
        return str(self.args[0])


# --- what the caller gave ---------------------------------------------------------------------------------------


class TaskIdError(IdemregError):
    """The task_id is missing or malformed. The job did not start; nothing was stored."""

    code = "task-id"
    exit_code = 2
    hint = "A task_id is 1 to 512 bytes of NFC text without control characters."


class PrefixError(IdemregError):
    """The prefix of serial numbers is malformed. No number was given."""

    code = "prefix"
    exit_code = 2
    hint = "A prefix is 1 to 8 ASCII letters, digits or underscores, such as COUP."


class ArgumentError(IdemregError):
    """The arguments have no canonical bytes, so no checksum can tell two calls apart; or recover= cannot keep them.

    The job did not start, and nothing was stored.
    """

    code = "argument"
    exit_code = 2
    hint = "Leave the argument out with exclude=, or say what counts with checksum=."


class ChecksumMismatchError(IdemregError):
    """The task exists with other arguments, or belongs to another job. The job did not start, the row is untouched."""

    code = "mismatch"
    exit_code = 65
    hint = "Give different work a different task_id; `idemreg show TASK_ID` tells what the stored row belongs to."


# --- what the row says ------------------------------------------------------------------------------------------


class TaskRunningError(IdemregError):
    """Another live owner runs the task now.

    ``owner`` says who, ``since`` when it claimed (microseconds since the epoch, by the wall clock).
    """

    code = "running"
    exit_code = 75
    retryable = True
    hint = "Call again later, or give wait= to wait for the result; `idemreg show TASK_ID` tells who runs it."
    owner: OwnerInfo | None = None
    since: int | None = None


class TaskUnknownError(IdemregError):
    """Nobody can know whether the task's effect happened, so nothing runs it again by itself.

    ``retryable`` is true where a verify hook is at hand and will be asked again at the next call.
    """

    code = "unknown"
    exit_code = 76
    hint = "Find out whether it happened, then `idemreg resolve TASK_ID happened` or `... did-not-happen`."
    task: Task | None = None


class TaskFailedError(IdemregError):
    """The task failed before, and may not run again: its failure is held, or its attempts are used up."""

    code = "failed"
    exit_code = 1
    hint = "`idemreg show TASK_ID` tells the error; `idemreg retry TASK_ID` allows one more attempt."
    task: Task | None = None


class TaskDoneError(IdemregError):
    """The task is final and must not be answered with a result here: skipped, cancelled, or on_duplicate="raise".

    ``outcome`` carries what is stored.
    """

    code = "done"
    exit_code = 73
    hint = "`idemreg show TASK_ID` tells how it ended."
    outcome: Outcome[Any] | None = None


class TransitionError(IdemregError):
    """The row's status does not allow this step (or there is no such row). Nothing was changed."""

    code = "transition"
    exit_code = 1
    hint = "`idemreg show TASK_ID` tells the task's status."


# --- what became of a claim -------------------------------------------------------------------------------------


class ClaimLostError(IdemregError):
    """The claim is no longer this owner's: another took over or settled it, its lease is over, or this is a fork.

    Nothing was overwritten, and what was written in ``claim.transaction()`` is rolled back.
    """

    code = "claim-lost"
    exit_code = 75
    retryable = True
    hint = "This owner must not go on with the task; `idemreg show TASK_ID` tells what became of it."


class TaskTimeoutError(IdemregError):
    """The job ran longer than its ``timeout=`` and was ended; or, where it cannot be, was told so by `check`.

    It was interrupted in its middle: ``on_crash`` decides what becomes of the task.
    """

    code = "timeout"
    exit_code = 124
    hint = "`idemreg show TASK_ID` tells what became of it. Raise timeout= where the job needs longer."


class ResultError(IdemregError):
    """The job ran to its end, but its result cannot be stored or read back: it will not run again."""

    code = "result"
    exit_code = 1
    hint = "Return plain data under 1 MiB, or give result= a codec. The task counts as succeeded."


class StepError(IdemregError):
    """The step may not begin here, or was not saved: nothing of it is stored."""

    code = "step"
    exit_code = 2
    hint = "A step begins and ends inside of its claim, once, and outside of claim.transaction()."


class RecoveryError(IdemregError):
    """The task of a dead owner cannot be rerun here from what is kept of it. It is as it was; a caller may run it."""

    code = "recovery"
    exit_code = 1
    hint = "Call it with its arguments, or settle it; `idemreg show TASK_ID` tells what it belongs to."


# --- upkeep -----------------------------------------------------------------------------------------------------


class ClockError(IdemregError):
    """The wall clock is behind a stored time, so no age by date can be trusted: `purge` has removed nothing.

    Or it is in doubt: then nothing is scheduled until it is confirmed, which the command line tells (exit code 1).
    """

    code = "clock"
    exit_code = 78
    hint = "Set the clock right, then call again."


class ImportLineError(IdemregError):
    """A line of an import is not what an export writes; ``line`` is its number, from 1.

    What came before it in full transactions is imported, and it and all behind it is not.
    """

    code = "import-line"
    exit_code = 65
    hint = "Mend or export the file anew, and import it again: what is there already is left alone."
    line: int = 0


# --- schedules --------------------------------------------------------------------------------------------------


class ScheduleError(IdemregError):
    """The schedule makes no sense, or cannot be reckoned here. Nothing of it was stored, and nothing ran."""

    code = "schedule"
    exit_code = 2
    hint = "Minute, hour, day of month, month, day of week: '0 3 * * *' is 03:00, every day; and tz='Europe/Berlin'."


# --- commands -----------------------------------------------------------------------------------------------------


class CommandNotFoundError(IdemregError):
    """There is no such command. The task is as it was before."""

    code = "command-not-found"
    exit_code = 127
    hint = "Give the command's absolute path: cron's PATH is short."


class CommandNotExecutableError(IdemregError):
    """The command may not be executed. The task is as it was before."""

    code = "command-not-executable"
    exit_code = 126
    hint = "Is it marked executable, and does its first line name an interpreter that exists?"


# --- the store --------------------------------------------------------------------------------------------------


class StoreError(IdemregError):
    """The file could not be read or written. Never recorded as a failure of the job.

    ``in_job``: it met a statement of the job, in `claim.transaction()`, which is not to blame for it.
    """

    code = "store"
    exit_code = 74
    hint = "See the cause; check the disk and the file's permissions."
    in_job: bool = False


class StoreBusyError(StoreError):
    """The write lock was not free within the busy time-out. Nothing was written."""

    code = "store-busy"
    retryable = True
    hint = "Another process holds the write lock; call again, or raise busy_timeout=."


class StoreFullError(StoreError):
    """The disk is full. What could not be stored did not start."""

    code = "store-full"
    retryable = True
    hint = "Free some space on the disk; every task keeps its state meanwhile."


class SyncFailedError(StoreError):
    """The disk refused to make durable what was written. It is visible, and may be gone after a power cut.

    Nothing is reported as durable from then on, whatever is read, until the machine was booted anew: the system tells
    of a failed sync once, and says OK ever after.
    """

    code = "sync-failed"
    hint = "Look after the disk, then reboot: only what is read from the disk anew proves anything."


class StoreCorruptError(StoreError):
    """The file is damaged. Nothing is executed on its word."""

    code = "store-corrupt"
    hint = "`idemreg doctor --salvage OUT` copies what is whole out of the file; or put a backup in its place."


class StoreVersionError(StoreError):
    """The file, or SQLite itself, has a version that this code must not work with."""

    code = "store-version"
    hint = "Upgrade idemreg in every process that uses this file."


class StorePathError(StoreError):
    """The path cannot hold a registry: a folder, a device, another program's database, a network file system."""

    code = "store-path"
    hint = "Name a file on a local disk, in a folder that you may write."


class ChecksumKeyError(StoreError):
    """The checksums in the file are made with another key, or with none: they could not be compared with ours."""

    code = "checksum-key"
    hint = "Give the key that the registry was first used with: checksum_key=, or --checksum-key-file."


class FinishNotRecordedError(StoreError):
    """The job ended, but its end could not be stored. ``result`` carries what it returned.

    The task is not run again by itself: it stays ``running`` and becomes ``unknown``.
    """

    code = "finish-not-recorded"
    hint = "The job did run. When the disk works again: `idemreg resolve TASK_ID happened`."
    result: Any = None


def require(given: object, kind: type, what: str) -> None:
    """TypeError where it is of another kind: it would fail far below, in words of another."""
    if not isinstance(given, kind):
        msg = f"{what}, not {type(given).__name__}"
        raise TypeError(msg)
