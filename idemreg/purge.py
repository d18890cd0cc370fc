"""Removing tasks whose time has passed: count them, ask, then remove them chunk by chunk.

The count and the removal use one instant: what ended in between stays, so nothing goes that was not shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg.errors import ClockError
from idemreg.model import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.clock import Clock
    from idemreg.query import Instant, Query
    from idemreg.store import Group, Store

__all__ = ["Purge", "purge"]

# Names of jobs may be many; what comes behind so many of them is counted as one.
MOST_GROUPS: Final = 1_000
OTHER_NAMES: Final = "(other jobs)"

# Other processes wait for the write lock in naps: between two chunks each of them gets a look at it.
PAUSE_S: Final = 0.005


class Purge(NamedTuple):
    """What a purge found, by status and job, and how much of it is removed."""

    groups: list[Group]
    removed: int = 0

    @property
    def total(self) -> int:
        """How many tasks were found whose time has passed."""
        return sum(group.tasks for group in self.groups)

    @property
    def oldest(self) -> int | None:
        """When the first of them changed last, microseconds by the wall clock; None where there is none."""
        return min((group.oldest for group in self.groups), default=None)

    @property
    def newest(self) -> int | None:
        """When the last of them changed last, microseconds by the wall clock; None where there is none."""
        return max((group.newest for group in self.groups), default=None)


def purge(
    store: Store,
    clock: Clock,
    query: Query,
    *,
    dry_run: bool = False,
    approve: Callable[[Purge], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Purge:
    """Remove what the query means and whose time has passed; see `Registry.purge`."""
    if query.statuses is not None and not query.statuses <= FINAL:
        msg = f"only {', '.join(status.word for status in sorted(FINAL))} tasks can be purged"
        raise ValueError(msg)
    at = store.instant()
    found = Purge(_survey(store, clock, query, at))
    if dry_run or not found.total or (approve is not None and not approve(found)):
        return found
    removed, after = 0, None
    while True:
        chunk = store.remove(query, at, after)
        removed += chunk.tasks
        if progress is not None and chunk.tasks:
            progress(removed)
        if (after := chunk.after) is None:
            return found._replace(removed=removed)
        clock.sleep(PAUSE_S)


def _survey(store: Store, clock: Clock, query: Query, at: Instant) -> list[Group]:
    """Count what may go. `ClockError` where any task at all has a date that is still to come."""
    groups: dict[tuple[object, str], Group] = {}
    after = None
    while True:
        piece = store.survey(query, at, after)
        now = clock.wall_us()  # behind the read: whoever writes meanwhile is not ahead of it
        if piece.newest is not None and piece.newest > now:
            raise _clock_error(piece.newest_task_id, piece.newest - now)
        for group in piece.groups:
            _add(groups, group)
        if (after := piece.after) is None:
            return sorted(groups.values(), key=lambda group: (group.status, group.name))


def _add(groups: dict[tuple[object, str], Group], group: Group) -> None:
    if (group.status, group.name) not in groups and len(groups) >= MOST_GROUPS:
        group = group._replace(name=OTHER_NAMES)
    if (so_far := groups.get((group.status, group.name))) is not None:
        group = group._replace(
            tasks=so_far.tasks + group.tasks,
            oldest=min(so_far.oldest, group.oldest),
            newest=max(so_far.newest, group.newest),
        )
    groups[group.status, group.name] = group


def _clock_error(task_id: str | None, ahead_us: int) -> ClockError:
    msg = f"task {task_id!r} changed {ahead_us / 1e6:.3f} s after what the clock says now, so dates cannot be trusted"
    hint = (
        "Set the clock right, then call again. If it is right and the task's date is wrong: `idemreg show TASK_ID`,"
        " and `idemreg forget TASK_ID` where it may go."
    )
    return ClockError(msg, task_id=task_id, hint=hint)
