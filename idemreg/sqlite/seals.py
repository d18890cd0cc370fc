"""Seals: a checksum over what a row says, verified before anything is decided by it or replayed from it.

A page checksum tells that a page is as it was written; a seal tells that a row is, wherever its bytes have been: in the
-wal, in memory, or in a file without page checksums. It is a CRC-32: it tells damage, not forgery.

A task's row has two, since a finish knows only half of the row and must not read the rest first:

    claim_seal   what the task belongs to and may: task_id, name, checksum, policy, keep_ms, note, settled_by, evidence
    state_seal   where it stands: task_id, status, token, attempt, owner, verdict, updated_at, boot_stamp, and result
                 and error wherever they are stored

Each is over one text, in which every value is told from its neighbours: numbers (or None) behind one another with a
space between, then each text with its length before it, a missing one as "-". Only functions here make that text.
"""

from __future__ import annotations

from binascii import crc32
from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import StoreCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "TASK_COLUMNS",
    "broken",
    "claim_seal",
    "running_seal",
    "state_seal",
    "success_seal",
    "task_holds",
    "values_seal",
]

# A task's row, in the order in which `task_holds` takes it.
TASK_COLUMNS: Final = (
    "task_id", "status", "checksum", "updated_at", "boot_stamp", "name", "token", "attempt", "owner", "policy",
    "keep_ms", "result", "error", "verdict", "settled_by", "evidence", "is_large", "note", "claim_seal", "state_seal",
)  # fmt: skip

# As a signed number of 32 bits, which SQLite stores in four bytes; an unsigned one takes six half of the time.
_MIDDLE: Final = 2**31


def claim_seal(
    task_id: str,
    name: str,
    checksum: str,
    policy: int,
    keep_ms: int | None,
    note: int | None = None,
    settled_by: str | None = None,
    evidence: str | None = None,
) -> int:
    """The seal over what the task belongs to. ``policy`` as it is stored."""
    history = "--" if settled_by is None and evidence is None else _text(settled_by) + _text(evidence)
    said = f"{policy} {keep_ms} {note} {len(task_id)}:{task_id}{len(name)}:{name}{len(checksum)}:{checksum}{history}"
    return crc32(said.encode()) - _MIDDLE


def state_seal(
    task_id: str,
    status: int,
    token: int,
    attempt: int,
    owner: int | None,
    verdict: int | None,
    updated_at: int,
    boot_stamp: int,
    result: str | None,
    error: str | None,
) -> int:
    """The seal over where the task stands. ``status`` and ``verdict`` as they are stored: no enumeration."""
    texts = f"{len(task_id)}:{task_id}{_text(result)}{'-' if error is None else _text(error)}"
    said = f"{status} {token} {attempt} {owner} {verdict} {updated_at} {boot_stamp} {texts}"
    return crc32(said.encode()) - _MIDDLE


def running_seal(
    task_id: str, status: int, token: int, attempt: int, owner: int | None, updated_at: int, boot_stamp: int
) -> int:
    """As `state_seal`, of a row that is new: the hot path."""
    said = f"{status} {token} {attempt} {owner} None {updated_at} {boot_stamp} {len(task_id)}:{task_id}--"
    return crc32(said.encode()) - _MIDDLE


def success_seal(task_id: str, token: int, attempt: int, updated_at: int, boot_stamp: int, result: str) -> int:
    """As `state_seal`, of a plain success: the hot path."""
    texts = f"{len(task_id)}:{task_id}{len(result)}:{result}-"
    return crc32(f"1 {token} {attempt} None None {updated_at} {boot_stamp} {texts}".encode()) - _MIDDLE


def task_holds(row: Sequence[Any]) -> bool:
    """Whether both seals of a row hold: `TASK_COLUMNS`, with result and error from wherever they are stored."""
    task_id, status, checksum, updated_at, boot_stamp, name, token, attempt, owner, policy, keep_ms, result, *rest = row
    error, verdict, settled_by, evidence, _, note, of_claim, of_state = rest[:8]
    numbers = status, token, attempt, owner, verdict, updated_at, boot_stamp
    try:
        if claim_seal(task_id, name, checksum, policy, keep_ms, note, settled_by, evidence) != of_claim:
            return False
        seal = state_seal(task_id, *numbers, result, error)
    except (TypeError, UnicodeEncodeError):  # damage may make anything of a value
        return False
    return bool(seal == of_state)


def values_seal(values: Iterable[Any]) -> int:
    """The seal over any other row: of the registry itself, or of an owner."""
    said = "".join(f"{value} " if value is None or type(value) is int else _text(value) for value in values)
    return crc32(said.encode()) - _MIDDLE


def values_hold(values: Iterable[Any], seal: object) -> bool:
    """Whether the seal is that of the values."""
    try:
        return values_seal(values) == seal
    except TypeError:  # damage may make any type of a value
        return False


def broken(what: str, task_id: str | None = None) -> StoreCorruptError:
    """The error of a row whose seal does not hold."""
    msg = f"{what} is not as it was written: its seal does not hold"
    return StoreCorruptError(msg, task_id=task_id)


def _text(value: str | None) -> str:
    return "-" if value is None else f"{len(value)}:{value}"
