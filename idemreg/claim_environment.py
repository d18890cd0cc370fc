"""By which variables of its environment a command knows its claim."""

from __future__ import annotations

import os
from typing import Final

from idemreg.slots import slot_of

__all__ = ["DATABASE_VARIABLE", "TASK_ID_VARIABLE", "TOKEN_VARIABLE", "of_claim", "of_no_claim"]

TASK_ID_VARIABLE: Final = "IDEMREG_TASK_ID"
TOKEN_VARIABLE: Final = "IDEMREG_TOKEN"  # noqa: S105 - a fencing token is no secret
DATABASE_VARIABLE: Final = "IDEMREG_CLAIM_DB"
_ATTEMPT: Final = "IDEMREG_ATTEMPT"
_DOWNSTREAM_KEY: Final = "IDEMREG_DOWNSTREAM_KEY"
_SLOT: Final = "IDEMREG_SLOT"
_ALL: Final = frozenset({TASK_ID_VARIABLE, TOKEN_VARIABLE, DATABASE_VARIABLE, _ATTEMPT, _DOWNSTREAM_KEY, _SLOT})


def of_no_claim() -> dict[str, str]:
    """This process's own, without what tells of a claim: it may itself be the command of one."""
    return {name: value for name, value in os.environ.items() if name not in _ALL}


def of_claim(task_id: str, attempt: int, token: int, downstream_key: str) -> dict[str, str]:
    """The same, with what tells of this claim."""
    variables = of_no_claim() | {
        TASK_ID_VARIABLE: task_id,
        TOKEN_VARIABLE: str(token),
        _ATTEMPT: str(attempt),
        _DOWNSTREAM_KEY: downstream_key,
    }
    if slot_of(task_id) is not None:
        variables[_SLOT] = task_id.rpartition("@")[2]
    return variables
