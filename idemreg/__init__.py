"""idemreg makes any job run once: never twice, and never silently lost.

from idemreg import Registry

registry = Registry("jobs.db")

@registry.idempotent("coupon:{user_id}:{day}")
def issue_coupon(user_id: int, day: str, amount: int = 10) -> dict: ...
"""

from __future__ import annotations

from idemreg.checkpointer import Checkpointer
from idemreg.claim import Claim, current_claim
from idemreg.clock import Clock
from idemreg.codec import Codec, DataclassCodec
from idemreg.errors import (
    ArgumentError,
    ChecksumMismatchError,
    ClaimLostError,
    FinishNotRecordedError,
    IdemregError,
    ResultError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StorePathError,
    StoreVersionError,
    TaskDoneError,
    TaskFailedError,
    TaskIdError,
    TaskRunningError,
    TaskUnknownError,
    TransitionError,
)
from idemreg.model import Liveness, Outcome, OwnerInfo, Status, Task, Verdict
from idemreg.options import Verified
from idemreg.registry import Registry

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Checkpointer",
    "ChecksumMismatchError",
    "Claim",
    "ClaimLostError",
    "Clock",
    "Codec",
    "DataclassCodec",
    "FinishNotRecordedError",
    "IdemregError",
    "Liveness",
    "Outcome",
    "OwnerInfo",
    "Registry",
    "ResultError",
    "Status",
    "StoreBusyError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StorePathError",
    "StoreVersionError",
    "Task",
    "TaskDoneError",
    "TaskFailedError",
    "TaskIdError",
    "TaskRunningError",
    "TaskUnknownError",
    "TransitionError",
    "Verdict",
    "Verified",
    "__version__",
    "current_claim",
]
