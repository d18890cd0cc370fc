"""What a store must be able to do for schedules: keep their rows, and the slots that they name, as values and no SQL.

A slot is a task: it is claimed, finished, settled and read by the `Store`. Here is the rest. A `Schedule` is one
version of a schedule: from when to when its expression counts, and the watermark up to which its slots have rows. Both
change together in `Ledger.plan`, or not at all, so a slot is never planned twice and never forgotten.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from idemreg.model import Status
from idemreg.slots import BY_SCHEDULE, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from idemreg.deciding import Wanted
    from idemreg.model import Task
    from idemreg.owner import OwnerInfo

__all__ = ["LOST_CRON", "Ledger", "NewSlot", "Schedule", "State", "Waiting", "is_skipped"]

# Of a schedule whose own expression is lost with a damaged file, until the program that has it looks: a leap day that
# is a Sunday. It must be some expression, and what it names meanwhile is skipped.
LOST_CRON: Final = "0 0 29 2 */7"

_REASONS: Final = frozenset(reason.value for reason in Reason)


class State(enum.IntEnum):
    """Whether slots may start. The numbers are stored and never change."""

    GOING = 0
    PAUSED = 1  # by an operator
    HELD = 2  # the clock was not to be trusted at the last look

    @property
    def word(self) -> str:
        """The state as people and JSON see it."""
        return self.name.lower()


class Schedule(NamedTuple):
    """One version of a schedule, as stored. Instants are whole seconds since the epoch.

    Its slots are those after ``after_s`` up to ``until_s`` (None: it is the one that counts). Those up to
    ``watermark_s`` have a row each; but where ``skips`` is a reason, all of this version are skipped for it, and none
    has a row. Before ``open_s`` no slot runs that `run_due` has started; but behind the ``until_s`` of a
    version that has ended it says up to where slots of it ran early: by hand, or by a clock that was ahead.
    """

    name: str
    version: int
    cron: str
    zone: str
    after_s: int
    until_s: int | None
    watermark_s: int
    open_s: int
    grace_ms: int | None
    state: State
    skips: Reason | None


class NewSlot(NamedTuple):
    """A slot to be given its row: skipped for a reason, or (None) pending."""

    at_s: int
    reason: Reason | None = None


class Waiting(NamedTuple):
    """What a look at a schedule finds, all at one instant.

    The version that counts (None: the schedule is new); its slots that are pending, failed, running, or unknown and not
    held, in order; and who runs the running ones, by task_id. ``begun``: the newest slot that has begun, and the newest
    of those up to the watermark, where they are newer than one that is pending. ``early``: the slots behind the
    watermark that have left `pending` all the same, by hand or by a clock that was ahead, and whether they have begun.
    ``skipped_s``: the newest of them that the schedule itself has skipped.
    """

    schedule: Schedule | None
    tasks: list[Task]
    owners: dict[str, OwnerInfo]
    begun: tuple[int, ...] = ()
    early: Mapping[int, bool] = MappingProxyType({})
    skipped_s: int | None = None


def is_skipped(row: Task) -> bool:
    """Whether the schedule itself has skipped the slot, and it never ran. So it comes again, if its time is to come."""
    is_by_schedule = row.status is Status.SKIPPED and row.settled_by == BY_SCHEDULE
    return is_by_schedule and row.attempt == 0 and row.evidence in _REASONS


class Ledger(Protocol):
    """Schedules, and rows for their slots."""

    def schedules(self, name: str | None = None) -> list[Schedule]:
        """Every version of the schedule, or of all, in order."""

    def waiting(self, name: str) -> Waiting:
        """What may be to be done about a schedule. Takes no lock."""

    def plan(
        self, seen: Schedule | None, becomes: Sequence[Schedule], slots: Sequence[NewSlot], wanted: Wanted
    ) -> bool:
        """Write the versions ``becomes``, and a row for each of the slots that has none, in one transaction.

        False, and nothing is written, where the version that counts is not the one that was ``seen``. ``wanted``: what
        the rows say, but for the task_id.
        """

    def rewind(self, seen: Schedule, now_s: int, wanted: Wanted) -> bool:
        """The schedule has come no further than to now: behind a clock that was ahead; see `sqlite/rewinding.py`.

        False, and nothing is written, where the version that counts is not the one that was ``seen``, and where nothing
        is ahead any more of the clock, which is read again under the write lock. ``wanted``: what the rows say of slots
        whose rows were removed, but for the task_id.
        """
