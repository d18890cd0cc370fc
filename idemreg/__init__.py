"""idemreg makes any job run once: never twice, and never silently lost.

from idemreg import Registry

registry = Registry("jobs.db")

@registry.idempotent("coupon:{user_id}:{day}")
def issue_coupon(user_id: int, day: str, amount: int = 10) -> dict: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idemreg.aio import AsyncClaim, AsyncRegistry
    from idemreg.checkpointer import Checkpointer
    from idemreg.claim import Claim, current_claim
    from idemreg.clock import Clock
    from idemreg.clockcheck.verdict import ClockBands, ClockCheck, ClockVerdict
    from idemreg.codec import Codec, DataclassCodec
    from idemreg.deciding import Outcome
    from idemreg.errors import (
        ArgumentError,
        ChecksumKeyError,
        ChecksumMismatchError,
        ClaimLostError,
        ClockError,
        FinishNotRecordedError,
        IdemregError,
        ImportLineError,
        PrefixError,
        RecoveryError,
        ResultError,
        ScheduleError,
        StepError,
        StoreBusyError,
        StoreCorruptError,
        StoreError,
        StoreFullError,
        StorePathError,
        StoreVersionError,
        SyncFailedError,
        TaskDoneError,
        TaskFailedError,
        TaskIdError,
        TaskRunningError,
        TaskTimeoutError,
        TaskUnknownError,
        TransitionError,
    )
    from idemreg.model import Liveness, Status, Task, Verdict
    from idemreg.options import Verified
    from idemreg.owner import OwnerInfo
    from idemreg.progress import Step
    from idemreg.registry import Registry
    from idemreg.sweeping import Swept

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AsyncClaim",
    "AsyncRegistry",
    "Checkpointer",
    "ChecksumKeyError",
    "ChecksumMismatchError",
    "Claim",
    "ClaimLostError",
    "Clock",
    "ClockBands",
    "ClockCheck",
    "ClockError",
    "ClockVerdict",
    "Codec",
    "DataclassCodec",
    "FinishNotRecordedError",
    "IdemregError",
    "ImportLineError",
    "Liveness",
    "Outcome",
    "OwnerInfo",
    "PrefixError",
    "RecoveryError",
    "Registry",
    "ResultError",
    "ScheduleError",
    "Status",
    "Step",
    "StepError",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StorePathError",
    "StoreVersionError",
    "Swept",
    "SyncFailedError",
    "Task",
    "TaskDoneError",
    "TaskFailedError",
    "TaskIdError",
    "TaskRunningError",
    "TaskTimeoutError",
    "TaskUnknownError",
    "TransitionError",
    "Verdict",
    "Verified",
    "__version__",
    "current_claim",
]

# Where each name is. All are imported when they are asked for, so that `import idemreg` costs next to nothing, and a
# program pays for what it uses.
_ROOMS = {
    "ArgumentError": "errors",
    "AsyncClaim": "aio",
    "AsyncRegistry": "aio",
    "Checkpointer": "checkpointer",
    "ChecksumKeyError": "errors",
    "ChecksumMismatchError": "errors",
    "Claim": "claim",
    "ClaimLostError": "errors",
    "Clock": "clock",
    "ClockBands": "clockcheck.verdict",
    "ClockCheck": "clockcheck.verdict",
    "ClockError": "errors",
    "ClockVerdict": "clockcheck.verdict",
    "Codec": "codec",
    "DataclassCodec": "codec",
    "FinishNotRecordedError": "errors",
    "IdemregError": "errors",
    "ImportLineError": "errors",
    "Liveness": "model",
    "Outcome": "deciding",
    "OwnerInfo": "owner",
    "PrefixError": "errors",
    "RecoveryError": "errors",
    "Registry": "registry",
    "ResultError": "errors",
    "ScheduleError": "errors",
    "Status": "model",
    "Step": "progress",
    "StepError": "errors",
    "StoreBusyError": "errors",
    "StoreCorruptError": "errors",
    "StoreError": "errors",
    "StoreFullError": "errors",
    "StorePathError": "errors",
    "StoreVersionError": "errors",
    "Swept": "sweeping",
    "SyncFailedError": "errors",
    "Task": "model",
    "TaskDoneError": "errors",
    "TaskFailedError": "errors",
    "TaskIdError": "errors",
    "TaskRunningError": "errors",
    "TaskTimeoutError": "errors",
    "TaskUnknownError": "errors",
    "TransitionError": "errors",
    "Verdict": "model",
    "Verified": "options",
    "current_claim": "claim",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of any name
    room = _ROOMS.get(name)
    if room is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # Not by importlib: a program that has a Registry has no other use for that module, and it takes 0.15 ms to import.
    value = globals()[name] = getattr(__import__(f"{__name__}.{room}", fromlist=(name,)), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
