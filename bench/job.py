"""The job that everybody does: nothing but a small result, and a count of its runs.

The count is what keeps the figures honest: a contender that ran no job for a new task, or one for a duplicate, was not
measured at what its line says, and the run stops.
"""

from __future__ import annotations

DAY = "2026-11-23"

_runs = 0


def issue_coupon(user_id: int, day: str, amount: int = 10) -> dict[str, object]:
    """The job. The same work for every contender: 30 ns for the count included."""
    global _runs  # noqa: PLW0603 - a counter of this process
    _runs += 1
    return {"coupon": user_id, "day": day, "amount": amount}


def runs() -> int:
    """How many jobs this process has run so far."""
    return _runs
