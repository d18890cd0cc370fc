"""What a registry tells a callback: typed values, one class an event, told after the commit that they speak of.

    registry = Registry("jobs.db", on_event=log_events(logging.getLogger("jobs")))

Nobody listening costs one comparison a call. A callback runs in the thread (or on the event loop) of the caller, who
waits for it; of a dropped claim, wherever that is noticed (it may be the garbage collector). An exception in it goes to
`threading.excepthook` and never touches the task. An interruption (Ctrl-C) goes to the caller; a claim that was just
being told of is put back then, since its job has not begun.

Each end is told once, by whoever made it. One that the store could not write is told as soon as it is left to the
store, which writes it when it can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from idemreg import store
from idemreg.leasing import LeaseLost
from idemreg.model import Status
from idemreg.untold import tell_hook

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

    from idemreg.deciding import Wanted
    from idemreg.model import Task
    from idemreg.sqlite.checkpoints import Checkpoint
    from idemreg.store import Answer, End, Granted

__all__ = [
    "EVENTS",
    "Checkpointed",
    "Claimed",
    "ClockConfirmed",
    "ClockSuspended",
    "Event",
    "Failed",
    "LeaseLost",
    "Mismatched",
    "OnEvent",
    "Released",
    "Replayed",
    "Succeeded",
    "TakenOver",
    "Teller",
    "Unknown",
    "event_fields",
    "log_events",
]


class Claimed(NamedTuple):
    """The caller owns the task; its job is about to start (or the verify hook to be asked)."""

    task_id: str
    name: str
    token: int
    attempt: int


class TakenOver(NamedTuple):
    """As `Claimed`, from an owner that is proven dead, or whose lease expired: ``owner`` is its number."""

    task_id: str
    name: str
    token: int
    attempt: int
    owner: int | None


class Replayed(NamedTuple):
    """A duplicate call: the task has succeeded (or was skipped or cancelled) before, and nothing ran."""

    task_id: str
    name: str
    token: int
    attempt: int


class Mismatched(NamedTuple):
    """The call was refused: the task belongs to another job, or to other arguments."""

    task_id: str
    name: str


class Succeeded(NamedTuple):
    """The job has run, and its result is stored."""

    task_id: str
    name: str
    token: int
    attempt: int


class Failed(NamedTuple):
    """The attempt failed; ``error`` is what was stored of it."""

    task_id: str
    name: str
    token: int
    attempt: int
    error: str | None


class Unknown(NamedTuple):
    """Nobody knows whether the task happened: since now, by this caller's end or by a dead owner's."""

    task_id: str
    name: str
    token: int
    attempt: int
    error: str | None


class Released(NamedTuple):
    """The task was put back: what ran counts as no attempt, or its policy lets it run again."""

    task_id: str
    name: str
    token: int
    attempt: int


class Checkpointed(NamedTuple):
    """The -wal was moved into the database, or as much of it as could be."""

    checkpoint: Checkpoint


class ClockSuspended(NamedTuple):
    """The wall clock is in doubt: scheduling and catch-up are suspended until the alarm of this task_id is settled."""

    task_id: str
    name: str
    reason: str


class ClockConfirmed(NamedTuple):
    """The wall clock is confirmed, by a source or an operator: what was suspended goes on."""

    task_id: str
    name: str
    evidence: str


Event: TypeAlias = (
    Claimed
    | TakenOver
    | Replayed
    | Mismatched
    | Succeeded
    | Failed
    | Unknown
    | Released
    | LeaseLost
    | Checkpointed
    | ClockSuspended
    | ClockConfirmed
)
OnEvent: TypeAlias = Callable[[Event], object]

# By the names under which the command line speaks of them.
EVENTS: Final[Mapping[str, type[Event]]] = {
    "claimed": Claimed,
    "taken-over": TakenOver,
    "replayed": Replayed,
    "mismatched": Mismatched,
    "succeeded": Succeeded,
    "failed": Failed,
    "unknown": Unknown,
    "released": Released,
    "lease-lost": LeaseLost,
    "checkpointed": Checkpointed,
    "clock-suspended": ClockSuspended,
    "clock-confirmed": ClockConfirmed,
}
_NAMES: Final = {kind: name for name, kind in EVENTS.items()}


def event_fields(event: Event) -> dict[str, Any]:
    """The event as fields for JSON: its name as ``event``, and what it tells."""
    told = event.checkpoint._asdict() if isinstance(event, Checkpointed) else event._asdict()
    return {"event": _NAMES[type(event)]} | told


_QUIET = (Claimed, Replayed, Succeeded, Released, Checkpointed, ClockConfirmed)


def log_events(logger: logging.Logger) -> OnEvent:
    """A callback that logs: what needs a person as warnings, the rest as debug.

    A person is needed for what failed, is unknown, was taken over or mismatched, and for a clock in doubt.

    The event itself is in the record's ``idemreg`` attribute, for structured logging.
    """

    def log(event: Event) -> None:
        level = 10 if isinstance(event, _QUIET) else 30  # logging.DEBUG, logging.WARNING
        kind, extra = _NAMES[type(event)], {"idemreg": event}
        if isinstance(event, Checkpointed):
            done = event.checkpoint
            logger.log(level, "idemreg: %s %s of %s pages", kind, done.moved_pages, done.wal_pages, extra=extra)
        else:
            logger.log(level, "idemreg: %s %s (%s)", kind, event.task_id, event.name, extra=extra)

    return log


class Teller:
    """Tells a callback, whatever it does. Made where somebody listens; nothing else imports this room."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def tell(self, event: Event) -> None:
        """Call the callback."""
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - no listener may change what becomes of a task
            tell_hook(error)

    def granted(self, grant: Granted, name: str) -> None:
        """Tell of a claim."""
        prior = grant.prior
        if prior is not None and prior.status is Status.RUNNING:
            self.tell(TakenOver(grant.task_id, name, grant.token, grant.attempt, prior.owner))
        else:
            self.tell(Claimed(grant.task_id, name, grant.token, grant.attempt))

    def ended(self, grant: Granted, name: str, end: End) -> None:
        """Tell of the end of a claim."""
        task = (grant.task_id, name, grant.token, grant.attempt)
        if end.status is Status.SUCCEEDED:
            self.tell(Succeeded(*task))
        elif end.status is Status.PENDING or end.attempt < grant.attempt:
            self.tell(Released(*task))
        elif end.status is Status.FAILED:
            self.tell(Failed(*task, end.error))
        else:
            self.tell(Unknown(*task, end.error))

    def replayed(self, task_id: str, name: str, token: int, attempt: int) -> None:
        """Tell of a duplicate."""
        self.tell(Replayed(task_id, name, token, attempt))

    def refused(self, answer: Answer, wanted: Wanted) -> None:
        """Tell of what a caller has found out; that a known failure is refused again is no event."""
        match answer:
            case store.Mismatch():
                self.tell(Mismatched(wanted.task_id, wanted.name))
            case store.Unknown(task, is_new=True):
                self.unknown(task)
            case store.Refused(task, is_new=True):
                self.tell(Failed(task.task_id, task.name, task.token, task.attempt, task.error))

    def unknown(self, task: Task) -> None:
        """Tell of a task that is unknown from now on: its owner is dead, or the verify hook could not tell."""
        self.tell(Unknown(task.task_id, task.name, task.token, task.attempt, task.error))

    def checkpointed(self, done: Checkpoint) -> None:
        """Tell of a checkpoint."""
        self.tell(Checkpointed(done))
