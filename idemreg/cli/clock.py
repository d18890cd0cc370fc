"""clock: say whether the wall clock can be trusted with a schedule, and confirm it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from idemreg.cli.bands import VARIABLES, bands_of
from idemreg.cli.context import Command, HintedUsageError, common_options, login_name, settings
from idemreg.cli.failures import concrete
from idemreg.cli.render import Cell, facts, write, write_json
from idemreg.cli.text import columns, escape, fold, paint
from idemreg.cli.values import TEXT
from idemreg.clockcheck.verdict import SUSPENDED, ClockVerdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.clockcheck.verdict import ClockCheck

__all__ = ["FIELDS", "clock"]

FIELDS: Final = {
    "verdict": "good, deviating or cannot-tell",
    "deviation_us": "by how many microseconds the clock is ahead, by the source that says the worst",
    "scheduling": "whether slots that are due now may begin",
    "catch_up": "whether slots that were missed may begin or be skipped",
    "extension_ms": "by how many milliseconds execution windows are extended",
    "correction_us": "what to add to the clock while the hardware clock serves in its place, else 0",
    "alarm": "task_id of the alarm that suspends scheduling, or null",
    "confirmed": "task_id of the alarm that --confirm has ended, or null",
    "sources": "what each says: source, deviation_us (or null), resolution_us, speaks, text",
}

COLOURS: Final = {ClockVerdict.GOOD: "green", ClockVerdict.DEVIATING: "yellow", ClockVerdict.CANNOT_TELL: "yellow"}
LABELS: Final = {"hardware clock": "hardware", "time since boot": "boot time", "stored times": "stored"}


@click.command(
    cls=Command,
    examples=[
        "idemreg clock",
        "idemreg clock --json | jq .verdict",
        "idemreg clock --confirm --evidence 'by my watch'",
    ],
    fields=FIELDS,
)
@click.option("--confirm", is_flag=True, help="Trust the clock as it is now; the alarm ends, and scheduling goes on.")
@click.option("--evidence", type=TEXT, default=None, help="With --confirm: what that rests on.")
@click.option("--by", type=TEXT, metavar="WHO", default=None, help="With --confirm: who says so. Default: your login.")
@click.option(
    "--extend-from", type=float, default=None, metavar="MS", help="Try: extend windows from so many ms. Default: 10"
)
@click.option("--suspend-from", type=float, default=None, metavar="MS", help="Try: suspend from so many. Default: 50")
@click.option("--extension", type=float, default=None, metavar="MS", help="Try: extend by so many. Default: 20")
@common_options()
def clock(
    evidence: str | None,
    by: str | None,
    extend_from: float | None,
    suspend_from: float | None,
    extension: float | None,
    *,
    confirm: bool,
) -> None:
    """Say whether the clock can be trusted with a schedule.

    Asked are the kernel and chrony, where they are synchronised to somebody, the hardware clock, the time since boot
    (for a jump since the last look) and the stored times. Each speaks only beyond its own resolution; the worst holds.
    A small deviation or jump extends execution windows. A large one, or a clock that is behind the newest stored time,
    suspends scheduling and catch-up: an alarm, a task that is unknown, says why. It ends when a source answers for the
    clock, or by --confirm. Whether a task may run never depends on any of it.

    Other bands, given here, are tried and suspend nothing. Those by which commands go (run --every, schedule --resume)
    are set by IDEMREG_CLOCK_EXTEND_FROM, IDEMREG_CLOCK_SUSPEND_FROM and IDEMREG_CLOCK_EXTENSION, in ms; a module sets
    its own.

    Exit code 0: good; or deviating within the bands; or nobody can tell, with a warning on stderr. 1: scheduling is
    suspended (also where the hardware clock serves meanwhile).
    """
    if not confirm and (evidence is not None or by is not None):
        msg = "--evidence and --by go with --confirm"
        raise HintedUsageError(msg, "Without it nothing is confirmed.")
    given = {"extend_from_ms": extend_from, "suspend_from_ms": suspend_from, "extension_ms": extension}
    is_trial = any(value is not None for value in given.values())
    if confirm and is_trial:
        msg = "--confirm goes by the bands of all that schedule, and not by others"
        raise HintedUsageError(msg, f"Set them in the environment: {', '.join(VARIABLES.values())}")
    bands = bands_of(given)
    with settings().existing() as registry:
        registry.clock_bands = bands
        # A jump that nobody has looked at is an alarm first.
        before = registry.check_clock(bands if is_trial else None)
        found = registry.confirm_clock(evidence=evidence or "", by=by or login_name()) if confirm else before
    if settings().json:
        write_json(_fields(found, before.alarm if confirm else None))
    else:
        _tell(found)
    if confirm and before.alarm is None:
        _warn("there was nothing to confirm: no alarm suspends scheduling")
    if not found.permit.catch_up:
        click.get_current_context().exit(SUSPENDED)
    if found.verdict is ClockVerdict.CANNOT_TELL:
        _warn("warning: no source can tell whether the clock is right; scheduling goes on")


def _warn(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk behind stderr takes nothing away from the answer
        sys.stderr.write(f"idemreg: {text}\n")


def _fields(found: ClockCheck, confirmed: str | None) -> dict[str, Any]:
    sources = [
        {
            "source": one.source,
            "deviation_us": one.deviation_us,
            "resolution_us": one.resolution_us,
            "speaks": one.speaks,
            "text": one.text,
        }
        for one in found.readings
    ]
    values = (found.verdict.value, found.deviation_us, *found.permit, found.alarm, confirmed, sources)
    return dict(zip(FIELDS, values, strict=True))


def _tell(found: ClockCheck) -> None:
    """The verdict in the first lines, then what each source says; what is to be done about it at the end."""
    colour = COLOURS[found.verdict] if found.permit.catch_up else "red"
    for line in fold(f"{found.finding}: {found.consequence}", columns()):
        write(paint(line, colour))
    facts((LABELS.get(one.source, one.source), Cell(escape(one.describe()))) for one in found.readings)
    if found.alarm is not None:
        facts(_alarm(found.alarm))


def _alarm(alarm: str) -> Iterator[tuple[str, Cell]]:
    yield "alarm", Cell(escape(alarm))
    yield "next", Cell(escape(concrete("Set the clock right, or: idemreg clock --confirm", None, settings())))
