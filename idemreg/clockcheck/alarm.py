"""How whoever meets the clock's alarm knows it: a task like others, but for what may be done about it.

What ends it for good confirms the clock. What would let it run again (*did not happen*, `retry`) is refused: nothing
runs it, so it would only look as if somebody had done something about the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from idemreg.deciding import Wanted
from idemreg.model import OnFailure, Policy

if TYPE_CHECKING:
    from idemreg.model import Task

__all__ = ["JOB", "NEXT", "PREFIX", "as_wanted", "is_alarm"]

JOB: Final = "idemreg clock"  # the name of the alarms' job
PREFIX: Final = "clock@"  # and the instant by the clock that is in doubt

NEXT: Final = (
    "`idemreg clock` tells whether the clock still deviates; `idemreg clock --confirm` trusts it as it is now."
)


def is_alarm(task: Task) -> bool:
    """Whether the task is an alarm, and no slot of a schedule that is named like one."""
    return task.name == JOB and task.task_id.startswith(PREFIX)


def as_wanted(alarm: str) -> Wanted:
    """An alarm as it is claimed: its job has no arguments, and nobody runs it twice."""
    import hashlib  # noqa: PLC0415 - whoever only meets an alarm makes none

    from idemreg.tagged import canonical  # noqa: PLC0415 - as above

    checksum = hashlib.sha256(canonical(None)).hexdigest()
    return Wanted(alarm, JOB, checksum, Policy(on_failure=OnFailure.HOLD, max_attempts=1))
