"""What may be missing from the copy of a damaged file, as it is told."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["EVERYWHERE", "NAMED", "Gaps", "Range", "joined"]

NAMED: Final = 100  # broken rows, ranges and pages that are told one by one


class Range(NamedTuple):
    """Between which task_ids rows may be lost; None: from the first, or to the last."""

    above: str | None
    below: str | None


EVERYWHERE: Final = Range(None, None)


class Gaps(NamedTuple):
    """What may be missing. Nothing is, where all of it is empty.

    ``damaged_pages``: the first hundred pages that are not there, or whose checksum, bytes or rows do not hold.
    ``ranges``: where rows may be lost with them. ``broken``: task_ids of rows whose seal fails, and of which no other
    copy holds. ``lost_frames``: some of the -wal are damaged or gone. ``lost_file_row``: the registry has a new id, and
    its downstream keys are new ones. ``lost_free_list``: tasks that were removed may be back. ``other_tables``: of
    jobs, which are not copied. ``lost_steps``: a page of steps is damaged; a task that runs again may repeat some.
    ``lost_schedules``: rows of schedules are damaged, or may be lost or older ones; ``paused``: the first hundred
    schedules that are told of, all of which are paused in the copy. ``lost_clock``: likewise the row about the clock;
    ``suspended``: the alarm that suspends scheduling in the copy for it, None where nothing tells of a schedule.
    ``without_arguments``: the first hundred tasks that have none in the copy, though some were kept for a rerun.
    """

    pages: int = 0
    damaged: int = 0
    damaged_pages: tuple[int, ...] = ()
    ranges: tuple[Range, ...] = ()
    broken: tuple[str, ...] = ()
    broken_rows: int = 0
    lost_frames: bool = False
    lost_file_row: bool = False
    lost_free_list: bool = False
    other_tables: tuple[str, ...] = ()
    lost_steps: bool = False
    lost_schedules: bool = False
    paused: tuple[str, ...] = ()
    paused_schedules: int = 0
    lost_clock: bool = False
    suspended: str | None = None
    without_arguments: tuple[str, ...] = ()
    tasks_without_arguments: int = 0

    @property
    def are_none(self) -> bool:
        """Whether nothing is missing."""
        return self._replace(pages=0) == Gaps()


def joined(places: list[Range]) -> list[Range]:
    """Neighbours in one, in order."""
    found: list[Range] = []
    for place in sorted(set(places), key=lambda one: (one.above is not None, one.above or "")):
        last = found[-1] if found else None
        if last is None or (last.below is not None and place.above is not None and last.below < place.above):
            found.append(place)
        elif last.below is not None and (place.below is None or place.below > last.below):
            found[-1] = Range(last.above, place.below)
    return found
