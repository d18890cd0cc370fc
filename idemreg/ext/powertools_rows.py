"""What a row of the Powertools utility is: its id, until when it is in progress, and the response that it keeps."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.errors import ChecksumMismatchError, TaskIdError, TaskUnknownError
from idemreg.model import NO_CHECKSUM
from idemreg.template import check_task_id

if TYPE_CHECKING:
    from idemreg.model import Task

__all__ = [
    "StoredResponse",
    "StoredResponseCodec",
    "check_ours",
    "deadline_ms",
    "name_until",
    "task_id_of",
    "unknown_error",
]

# The name of the job in the row also says until when an unfinished run counts as in progress, in milliseconds since the
# epoch: other processes must know, and the utility gives it with the claim.
_NAME: Final = re.compile(r"powertools until (\d+)")


class StoredResponse(NamedTuple):
    """What a completed row keeps. ``response`` is the utility's JSON; None where the result was none."""

    response: str | None
    expires_at: int


class StoredResponseCodec:
    """A `StoredResponse` as plain data."""

    def encode(self, value: StoredResponse, /) -> object:
        """ValueError where the function's result has no JSON."""
        if value.response is None:
            msg = "the result of the function has no JSON"
            raise ValueError(msg)
        return {"response": value.response, "expires_at": value.expires_at}

    def decode(self, data: Any, /) -> StoredResponse:  # noqa: ANN401 - plain data
        """The response as it was stored."""
        return StoredResponse(data["response"], data["expires_at"])


def task_id_of(key: str) -> str:
    """The utility's key, or a hash of one that is no task_id: names of functions may be of any length."""
    try:
        return check_task_id(key)
    except TaskIdError:
        return f"powertools:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def name_until(deadline_ms: int) -> str:
    """The name of a job that counts as in progress until then."""
    return f"powertools until {deadline_ms}"


def check_ours(row: Task) -> None:
    """`ChecksumMismatchError` for the row of a job that the utility does not know."""
    if row.checksum != NO_CHECKSUM and _NAME.fullmatch(row.name) is None:
        msg = f"task {row.task_id!r} belongs to the job {row.name!r}, not to Powertools"
        raise ChecksumMismatchError(msg, task_id=row.task_id)


def deadline_ms(row: Task) -> int:
    """Until when the row counts as in progress, in milliseconds since the epoch; 0 for one that a user made."""
    named = _NAME.fullmatch(row.name)
    return int(named[1]) if named else 0


def unknown_error(row: Task) -> TaskUnknownError:
    """The error for who asks for a key whose process has died in its function."""
    msg = f"nobody knows whether task {row.task_id!r} happened: its process died in the function"
    error = TaskUnknownError(msg, task_id=row.task_id)
    error.task = row
    return error
