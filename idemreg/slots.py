"""The name of a slot, and why one may be skipped.

A slot is a task like any other: its task_id is the schedule's name, an ``@`` and the instant in UTC, as in
``coupons@2026-11-22T19:00:00Z``. So the ids of a schedule sort by time, and whoever has one has its slot: nothing else
need be handed to the job. Inside, an instant is whole seconds since the epoch.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta
from typing import Final

from idemreg.errors import require

__all__ = ["BY_SCHEDULE", "REMOVED", "Reason", "instant", "seconds_of", "slot_id", "slot_of"]

BY_SCHEDULE: Final = "schedule"  # who has settled a slot that was skipped
# Why one is skipped whose row was removed, and no `Reason`: it may have run, and never comes again.
REMOVED: Final = "its row was removed before its time came"

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - in UTC, and without a zone an id takes half of the time
_FORM_CHARACTERS: Final = len("2026-11-22T19:00:00Z")


class Reason(enum.StrEnum):
    """Why a slot was skipped: the evidence of its settlement. The words are stored and never change."""

    COALESCED = "coalesced"  # others waited as well, and one stands for them all
    TOO_LATE = "too_late"  # its window had closed before anybody looked
    WINDOW_CLOSED = "window_closed"  # it waited, and its window closed before it could start
    OVER_LIMIT = "over_limit"  # more waited than may be caught up
    OVERLAP = "overlap"  # it came while an earlier one ran
    PAUSED = "paused"
    CLOCK = "clock"  # its window closed while the clock was not to be trusted
    SUPERSEDED = "superseded"  # the schedule became another before it ran


def slot_id(name: str, at_s: int) -> str:
    """The task_id of a schedule's slot."""
    return f"{name}@{(_EPOCH + timedelta(seconds=at_s)).isoformat()}Z"


def slot_of(task_id: str) -> int | None:
    """The instant of a slot; None where no slot has this task_id. The first @ counts: a schedule's name has none."""
    name, _, text = task_id.partition("@")
    if not name or len(text) != _FORM_CHARACTERS or not text.endswith("Z"):
        return None
    try:
        at = datetime.fromisoformat(text[:-1])
    except ValueError:
        return None
    at_s = (at - _EPOCH) // timedelta(seconds=1)
    return at_s if slot_id(name, at_s) == task_id else None  # other ways to write it are other task_ids


def instant(at_s: int) -> datetime:
    """As a datetime in UTC."""
    return (_EPOCH + timedelta(seconds=at_s)).replace(tzinfo=UTC)


def seconds_of(at: datetime) -> int:
    """Whole seconds since the epoch; ValueError where the datetime has no zone, and so is no instant.

    What its zone brings out of the years 1 to 9999, beyond which no slot has a name, is their end.
    """
    require(at, datetime, "an instant is a datetime")
    if at.tzinfo is None:
        msg = f"an instant has a time zone: {at!r} has none"
        raise ValueError(msg)
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    return (min(max(at, first), last) - instant(0)) // timedelta(seconds=1)
