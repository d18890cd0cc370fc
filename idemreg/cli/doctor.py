"""doctor: examine the file and all around it, and say what somebody should look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from idemreg.cli.context import Command, common_options, settings
from idemreg.cli.failures import concrete
from idemreg.cli.render import write, write_json
from idemreg.cli.text import columns, escape, fold, paint
from idemreg.doctor import Severity, could_not_open, examine, is_well

if TYPE_CHECKING:
    from idemreg.doctor import Finding

__all__ = ["FIELDS", "doctor"]

UNWELL: Final = 1
CANNOT_OPEN: Final = 74  # EX_IOERR, as a store error

INDENT: Final = "  "
COLOURS: Final = {Severity.INFO: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}

FIELDS: Final = {
    "code": "what was found, in one stable word",
    "severity": "info, warning or error",
    "text": "the same for people",
    "hint": "what to do about it; may be empty",
}


@click.command(
    cls=Command,
    examples=["idemreg doctor", "idemreg doctor --quiet", "idemreg doctor --full --json | jq .code"],
    fields=FIELDS,
)
@click.option("--full", is_flag=True, help="Check every page and index, without a limit of time.")
@click.option("--quiet", is_flag=True, help="Print warnings and errors only: nothing when all is well, for cron.")
@common_options()
def doctor(*, full: bool, quiet: bool) -> None:
    """Examine the file and all around it; change nothing.

    Versions, file system, permissions, lock file and locks, settings, the -wal and who reads it, damage, owners, tasks
    that wait for somebody, and the clock. Each question to the database gets 5 seconds, unless --full. Exit code 0: all
    is well. 1: there is a warning or an error. 74: the file cannot be opened.
    """
    findings = examine(settings().path(), full=full, unsafe_path=settings().unsafe_path)
    shown = [one for one in findings if not quiet or one.severity >= Severity.WARNING]
    for one in shown:
        if settings().json:
            write_json({"code": one.code, "severity": one.severity.word, "text": one.text, "hint": _hint(one)})
        else:
            _tell(one)
    if not settings().json and not (quiet and is_well(findings)):
        write(_summary(findings))
    if could_not_open(findings):
        click.get_current_context().exit(CANNOT_OPEN)
    if not is_well(findings):
        click.get_current_context().exit(UNWELL)


def _hint(one: Finding) -> str:
    return concrete(one.hint, None, settings())


def _tell(one: Finding) -> None:
    """The kind in the first line, then the text, then the hint."""
    write(f"{paint(one.severity.word, COLOURS[one.severity])} {one.code}")
    for label, text in (("", one.text), ("hint: ", _hint(one))):
        for piece in fold(escape(label + text), columns() - len(INDENT)) if text else ():
            write(INDENT + piece)


def _summary(findings: list[Finding]) -> str:
    if is_well(findings):
        return "all is well"
    counts = {severity: sum(one.severity is severity for one in findings) for severity in Severity}
    told = [
        f"{counts[severity]} {severity.word}{'' if counts[severity] == 1 else 's'}"
        for severity in (Severity.ERROR, Severity.WARNING)
        if counts[severity]
    ]
    return ", ".join(told)
