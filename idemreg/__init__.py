"""idemreg makes any job run once: never twice, and never silently lost.

from idemreg import Registry

registry = Registry("jobs.db")

@registry.idempotent("coupon:{user_id}:{day}")
def issue_coupon(user_id: int, day: str, amount: int = 10) -> dict: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idemreg.claim import Claim, current_claim
from idemreg.clock import Clock
from idemreg.codec import Codec, DataclassCodec
from idemreg.errors import (
    ArgumentError,
    ChecksumMismatchError,
    ClaimLostError,
    ClockError,
    FinishNotRecordedError,
    IdemregError,
    ImportLineError,
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

if TYPE_CHECKING:
    from idemreg.aio import AsyncClaim, AsyncRegistry
    from idemreg.checkpointer import Checkpointer

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AsyncClaim",
    "AsyncRegistry",
    "Checkpointer",
    "ChecksumMismatchError",
    "Claim",
    "ClaimLostError",
    "Clock",
    "ClockError",
    "Codec",
    "DataclassCodec",
    "FinishNotRecordedError",
    "IdemregError",
    "ImportLineError",
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


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of any name
    """Import what few programs need when it is asked for: `import idemreg` stays quick."""
    module = {"AsyncClaim": "aio", "AsyncRegistry": "aio", "Checkpointer": "checkpointer"}.get(name)
    if module is not None:
        import importlib  # noqa: PLC0415

        return getattr(importlib.import_module(f"idemreg.{module}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
