"""The doctor: examines a registry's file and all around it, and changes nothing.

A check is one function, which gets the case and yields findings. `CHECKS` lists them in order, each with what it needs:
a check whose ground is missing is left out, one that fails is a finding of its own, and the others go on. So a damaged
or foreign file is examined as far as it goes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg.clock import Clock
from idemreg.doctor import around, inside, work
from idemreg.doctor.case import Case
from idemreg.doctor.finding import CANNOT_OPEN, KINDS, Finding, Severity, finding
from idemreg.errors import IdemregError
from idemreg.sqlite.looking import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CHECKS", "Finding", "Severity", "could_not_open", "examine", "is_well"]


class Check(NamedTuple):
    """A check, and the ground it stands on."""

    run: Callable[[Case], Iterator[Finding]]
    has_ground: Callable[[Case], bool]


def _always(_case: Case) -> bool:
    return True


def _file(case: Case) -> bool:
    return case.may_open and os.path.isfile(case.path) and os.access(case.path, os.R_OK)


def _database(case: Case) -> bool:
    return case.look is not None


def _registry(case: Case) -> bool:
    return case.registered is not None


CHECKS: Final = (
    Check(around.versions, _always),
    Check(around.path, _always),
    Check(around.filesystem, _file),
    Check(around.permissions, _file),
    Check(around.trust, _file),
    Check(around.lock_file, _file),
    Check(around.locks, _file),
    Check(inside.database, _file),
    Check(around.no_lock_file, _database),
    Check(inside.layout, _database),
    Check(inside.settings, _database),
    Check(inside.wal, _database),
    Check(inside.damage, _database),
    Check(inside.schema, _database),
    Check(inside.broken_rows, _registry),
    Check(inside.seals, _registry),
    Check(inside.large_values, _registry),
    Check(inside.steps, _registry),
    Check(inside.kept_arguments, _registry),
    Check(work.owners, _registry),
    Check(work.tasks, _registry),
    Check(work.running, _registry),
    Check(work.limits, _registry),
    Check(work.to_rerun, _registry),
    Check(work.waiting, _registry),
    Check(work.clock, _registry),
    Check(work.boots, _registry),
)


def examine(
    path: str | os.PathLike[str], *, full: bool = False, clock: Clock | None = None, unsafe_path: bool = False
) -> list[Finding]:
    """Examine the registry at ``path``, and say what was found, in the order of the checks. Raises nothing of its own.

    Each question to the database is given 5 seconds, and is `unfinished` then; ``full`` lifts that limit, and takes
    SQLite's integrity_check in place of quick_check. Nothing is changed: no file comes into being that stays, no page
    is moved, no row is settled. ``unsafe_path``: as of `Registry`.
    """
    case = Case(os.path.abspath(os.fspath(path)), clock or Clock(), full=full, unsafe_path=unsafe_path)
    try:
        return [found for check in CHECKS if check.has_ground(case) for found in _carry_out(check, case)]
    finally:
        case.close()


def _carry_out(check: Check, case: Case) -> Iterator[Finding]:
    name = check.run.__name__.replace("_", " ")
    try:
        yield from check.run(case)
    except DeadlineError as error:
        yield finding("unfinished", f"The check of {name}: {error.message}.")
    except (IdemregError, OSError, ValueError, TypeError) as error:  # a damaged value may be of any type
        yield finding("check-failed", f"The check of {name} could not be made: {error}.")


def is_well(findings: list[Finding]) -> bool:
    """Whether nothing was found that somebody should look at."""
    return all(one.severity < Severity.WARNING for one in findings)


def could_not_open(findings: list[Finding]) -> bool:
    """Whether the file could not be looked into at all."""
    return any(one.code in CANNOT_OPEN for one in findings)


assert KINDS.keys() >= CANNOT_OPEN  # noqa: S101 - a slip in the table itself
