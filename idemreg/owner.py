"""Who holds a claim, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from idemreg.model import Liveness

__all__ = ["OwnerInfo"]


class OwnerInfo(NamedTuple):
    """Who holds a claim, for people: the ``pid`` is one of ``host`` (and of its own pid namespace)."""

    owner: int
    liveness: Liveness
    pid: int | None = None
    host: str = ""
    command: str = ""
    reason: str = ""
    entered: bool = True  # False: dead, and the job of this task was not begun
    lease_left_ms: int | None = None  # until its lease expires, negative once it has; None: it has none
    overdue_ms: int | None = None  # how long its job has run beyond its time limit, negative before; None: it has none

    @property
    def is_overdue(self) -> bool:
        """Whether the job runs longer than its time limit allows."""
        return self.overdue_ms is not None and self.overdue_ms > 0

    def describe(self) -> str:
        """The owner in words: who, then why it counts as alive or dead."""
        who = f"owner {self.owner}" if self.pid is None else f"process {self.pid} on {self.host} ({self.command})"
        return f"{who}: {self.reason}"
