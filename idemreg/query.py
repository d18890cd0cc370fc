"""What whoever looks asks of a store: which tasks, and what comes back; values and no SQL, as in `store`.

A room of its own, so that a process that only looks need not import what claims and ends ask.
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

from typing import NamedTuple

from idemreg.model import Status, Task

__all__ = ["Instant", "Page", "Query"]


class Query(NamedTuple):
    """Which tasks; all by default. What is given must all hold.

    ``status``: one, or several. ``prefix``: the beginning of the task_id. ``name``: of the job. ``older_ms``: not
    changed for at least so long; ``newer_ms``: changed within so long (see `Instant`). ``dead``: dead letters only.
    """

    status: Status | frozenset[Status] | None = None
    prefix: str = ""
    name: str | None = None
    older_ms: int | None = None
    newer_ms: int | None = None
    dead: bool = False

    @property
    def statuses(self) -> frozenset[Status] | None:
        """The statuses as a set; None: all."""
        return frozenset({self.status}) if isinstance(self.status, Status) else self.status


class Instant(NamedTuple):
    """The instant from which ages are counted.

    A row whose stamp is ``boot_start`` or above was written in this boot, and its age is counted by time since boot,
    whatever the wall clock did; only of earlier rows the date decides.
    """

    wall_us: int
    boot_ms: int
    boot_start: int


class Page(NamedTuple):
    """Some tasks in the order of their task_id. ``after`` goes on from there (None: no more), also where none came."""

    tasks: list[Task]
    after: str | None
