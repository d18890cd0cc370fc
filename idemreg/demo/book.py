"""The book of act two: what the witness saw of each coupon job, line by line, unknown to the registry.

TASK_ID entered - by PROCESS token TOKEN
TASK_ID issued SERIAL by PROCESS token TOKEN
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from idemreg.demo.witness import Witness

__all__ = ["ENTERED", "ISSUED", "Book", "Entry"]

ENTERED: Final = "entered"
ISSUED: Final = "issued"
NO_SERIAL: Final = "-"


class Entry(NamedTuple):
    """One line: a process has entered the body of a task's job, or has issued its coupon there."""

    task_id: str
    what: str
    serial: str
    by: str
    token: int


class Book:
    """Entries are written by the jobs, and read by the verify hook and for the account."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def enter(self, task_id: str, by: str, token: int) -> None:
        """The body of the job is entered."""
        self._witness.record(task_id, f"{ENTERED} {NO_SERIAL} by {by} token {token}")

    def issue(self, task_id: str, serial: str, by: str, token: int) -> None:
        """The effect: the coupon goes out into the world."""
        self._witness.record(task_id, f"{ISSUED} {serial} by {by} token {token}")

    def entries(self) -> list[Entry]:
        """All of them, in the order in which they happened."""
        found = []
        for line in self._witness.lines():
            task_id, what, serial, _, by, _, token = line.split(" ")
            found.append(Entry(task_id, what, serial, by, int(token)))
        return found

    def issued(self, task_id: str) -> Entry | None:
        """The task's coupon; None where there is none."""
        return next((one for one in self.entries() if one.task_id == task_id and one.what == ISSUED), None)
