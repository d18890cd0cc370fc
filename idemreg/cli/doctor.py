"""doctor: examine the file and all around it, and say what somebody should look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from idemreg.cli.context import Command, common_options, settings
from idemreg.cli.failures import concrete
from idemreg.cli.progress import bar
from idemreg.cli.render import write, write_folded, write_json
from idemreg.cli.text import columns, escape, fold, paint
from idemreg.counted import counted
from idemreg.doctor import Severity, could_not_open, examine, is_well

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.doctor import Finding
    from idemreg.sqlite.gaps import Gaps, Range

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
    examples=[
        "idemreg doctor",
        "idemreg doctor --quiet",
        "idemreg doctor --full --json | jq .code",
        "idemreg --db damaged.db doctor --salvage jobs.db",
    ],
    fields=FIELDS,
)
@click.option("--full", is_flag=True, help="Check every page and index, without a limit of time.")
@click.option(
    "--salvage",
    metavar="OUT",
    type=click.Path(dir_okay=False),
    default=None,
    help="Copy every row whose seal holds out of a damaged file into a new one, OUT, and report what may be missing.",
)
@click.option("--quiet", is_flag=True, help="Print warnings and errors only: nothing when all is well, for cron.")
@common_options()
def doctor(*, full: bool, quiet: bool, salvage: str | None) -> None:
    """Examine the file and all around it; change nothing.

    Versions, file system, permissions, lock file and locks, settings, the -wal and who reads it, damage, owners, tasks
    that wait for somebody, and the clock. Each question to the database gets 5 seconds, unless --full. Exit code 0: all
    is well. 1: there is a warning or an error. 74: the file cannot be opened.

    With --salvage the file is read page by page, past SQLite; stop what uses it before. Running tasks become unknown in
    OUT, and so do others of which a newer row may be lost; no sweep runs them before somebody has resolved them. --json
    gives one object: path, copied, unknown, and gaps. Exit code 0: nothing is missing. 1: something may be.
    """
    if salvage is not None:
        _salvage(salvage, quiet=quiet)
        return
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


def _salvage(out: str, *, quiet: bool) -> None:
    from idemreg.doctor.salvage import salvage  # noqa: PLC0415 - few need it

    with bar("salvaging", hidden=settings().json or quiet) as show:
        done = salvage(settings().path(), out, progress=show)
    gaps = done.gaps
    if settings().json:
        write_json({**done._asdict(), "gaps": {**gaps._asdict(), "ranges": [place._asdict() for place in gaps.ranges]}})
    elif not (quiet and gaps.are_none):
        unknown = f", {done.unknown:,} of them unknown now" if done.unknown else ""
        write_folded(f"copied {counted(done.copied, 'task')}{unknown}, to")
        write(escape(done.path))
        for line in _gap_lines(gaps):
            write_folded(line)
    if not gaps.are_none:
        click.get_current_context().exit(UNWELL)


def _gap_lines(gaps: Gaps) -> Iterator[str]:
    """What may be missing, in sentences."""
    if gaps.are_none:
        yield "nothing is missing"
    if gaps.damaged:
        yield f"damaged or not there: {gaps.damaged:,} of {counted(gaps.pages, 'page')}"
    for place in gaps.ranges:
        yield f"rows may be lost {_between(place)}"
    if gaps.broken_rows:
        yield f"{counted(gaps.broken_rows, 'damaged row')}: {_named(gaps.broken, gaps.broken_rows)}"
    if gaps.lost_frames:
        yield "the -wal is damaged, or frames of it are gone: the last changes of some tasks may be lost"
    if gaps.lost_file_row:
        yield "the row about the file is lost: the copy has a new id, and so new downstream keys"
    if gaps.lost_free_list:
        yield "the list of free pages is lost: tasks that were removed may be back"
    if gaps.lost_steps:
        yield "steps may be lost: a task that runs again repeats such a piece of its job"
    yield from (*_kept_lines(gaps), *_held_lines(gaps))
    if gaps.other_tables:
        yield f"tables of jobs are not copied: {', '.join(map(escape, gaps.other_tables))}"


def _kept_lines(gaps: Gaps) -> Iterator[str]:
    if gaps.tasks_without_arguments:
        names = _named(gaps.without_arguments, gaps.tasks_without_arguments)
        yield f"kept arguments are not in the copy, and no sweep reruns their tasks: {names}"


def _held_lines(gaps: Gaps) -> Iterator[str]:
    if gaps.lost_schedules:
        yield "schedules may be lost, with their pauses: one that the copy does not list begins anew"
    if gaps.paused_schedules:
        yield f"schedules are paused in the copy: {_named(gaps.paused, gaps.paused_schedules)}"
        yield "what comes due is skipped; once you have seen what ran: idemreg schedule --resume NAME"
    if gaps.suspended is not None:
        alarm = escape(gaps.suspended)
        yield f"what was known of the clock may be lost: {alarm} suspends schedules until idemreg clock --confirm"
    elif gaps.lost_clock:
        yield "what was known of the clock may be lost"


def _named(some: tuple[str, ...], count: int) -> str:
    """Some of so many names."""
    more = f", and {count - len(some):,} more" if count > len(some) else ""
    return ", ".join(map(escape, some)) + more


def _between(place: Range) -> str:
    if place.above is None and place.below is None:
        return "anywhere"
    if place.above is None:
        return f"up to {escape(place.below or '')}"
    return f"from {escape(place.above)} " + ("on" if place.below is None else f"to {escape(place.below)}")


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
        counted(counts[severity], severity.word) for severity in (Severity.ERROR, Severity.WARNING) if counts[severity]
    ]
    return ", ".join(told)
