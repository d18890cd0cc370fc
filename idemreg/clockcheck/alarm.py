"""How whoever meets the clock's alarm knows it: a task like others, but for what may be done about it.

What ends it for good confirms the clock. What would let it run again (*did not happen*, `retry`) is refused: nothing
runs it, so it would only look as if somebody had done something about the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from idemreg.model import Task

__all__ = ["JOB", "NEXT", "PREFIX", "is_alarm"]

JOB: Final = "idemreg clock"  # the name of the alarms' job
PREFIX: Final = "clock@"  # and the instant by the clock that is in doubt

NEXT: Final = "`idemreg clock` tells whether the clock still deviates; `idemreg clock --confirm` trusts it as it is now"


def is_alarm(task: Task) -> bool:
    """Whether the task is an alarm, and no slot of a schedule that is named like one."""
    return task.name == JOB and task.task_id.startswith(PREFIX)
