"""What a store of tasks offers for recovery: kept arguments, and the end of tasks whose owner is dead.

A claim that is wanted with `Kept` arguments is granted by `Store.claim` alone and ended by `Store.finish` alone, which
store and remove them in the transaction of the claim and of the task's final end: see `idemreg.beside`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from idemreg.deciding import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from idemreg.model import Task, Version
    from idemreg.store import Refused, Unknown

__all__ = ["BURIED_AT_ONCE", "Kept", "Recovery", "as_stored"]

# Of one transaction: others wait some milliseconds for it.
BURIED_AT_ONCE: Final = 100


class Kept(NamedTuple):
    """What is stored of a task's arguments: tagged JSON, of a function or of a command.

    ``follows``, of a rerun: the task as it was found. Where the row has changed since, or has gone, `Store.claim`
    answers `Lost` (`Done` where it is final), so that what somebody ran meanwhile, or ended, is not run once more.
    """

    is_command: bool
    arguments: str
    follows: Version | None = None


class Recovery(Protocol):
    """The half of a `Store` that `idemreg.sweeping` stands on."""

    def kept(self, after: str | None, limit: int) -> list[tuple[Task, Kept]]:
        """At most ``limit`` tasks whose arguments are kept, behind the task_id ``after``, in order."""

    def kept_of(self, task_id: str) -> Kept | None:
        """The kept arguments of the task; None where there are none."""

    def bury(self, seen: Sequence[Task]) -> list[Unknown | Refused | None]:
        """Settle tasks whose owner is proven dead as a claim would, one answer each, by one transaction.

        `Unknown` under hold and verify, `Refused` where rerun has no attempts left; None where the row is not what was
        ``seen`` any more, or its next call runs it by itself. Durable when this returns. At most `BURIED_AT_ONCE`.
        """

    def check_files(self) -> None:
        """`StoreCorruptError` where the files at the path are not those that were opened: who only reads sees none."""


def as_stored(task: Task) -> Wanted:
    """The claim that asks for what the row says: the same job, arguments and policy."""
    return Wanted(task.task_id, task.name, task.checksum, task.policy, task.keep_ms)
