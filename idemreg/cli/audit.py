"""`idemreg audit`: a schedule as it should have been and as it was, as a calendar or as lines of JSON."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, cast

import click

from idemreg.cli.context import Command, common_options, settings
from idemreg.cli.render import write, write_folded, write_json
from idemreg.cli.text import columns, escape, paint
from idemreg.cli.values import DURATION
from idemreg.slots import instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from idemreg.audit import Audited
    from idemreg.ledger import Ledger, Schedule
    from idemreg.operations import Operations

__all__ = ["AUDIT_FIELDS", "audit"]

AUDIT_FIELDS: Final = {
    "task_id": "the slot's task",
    "slot": "its instant, in UTC; null where the task_id is none of a slot",
    "local": "the same by the clock of the schedule's zone",
    "state": "run, running, failed, unknown, skipped, cancelled, pending, late, missing or double",
    "reason": "why it was skipped, or what is wrong; or null",
    "attempt": "how often its job was entered",
    "version": "of the schedule: another expression begins another; null where no version has the slot",
}

UNSOUND: Final = 1
TOLD: Final = 20  # gaps and doubles one by one, on the terminal

# A mark a slot, and its colour.
MARKS: Final = {
    "run": ("+", "green"), "running": (">", "cyan"), "failed": ("F", "red"), "unknown": ("?", "yellow"),
    "skipped": ("-", "grey"), "cancelled": ("c", "grey"), "pending": (".", None), "late": ("L", "red"),
    "missing": ("!", "red"), "double": ("2", "red"),
}  # fmt: skip
HEAD_COLUMNS: Final = len("2026-11-22 Sun  ")


@click.command(
    cls=Command,
    examples=[
        "idemreg audit coupons",
        "idemreg audit coupons --since 2026-11-01 --until 2026-12-01",
        "idemreg audit coupons --since 7d --json",
    ],
    fields=AUDIT_FIELDS,
)
@click.argument("name", metavar="NAME")
@click.option("--since", metavar="WHEN", default=None, help="Slots after this. Default: since the schedule began.")
@click.option("--until", metavar="WHEN", default=None, help="Slots up to this. Default, and at most: now.")
@common_options()
def audit(name: str, since: str | None, until: str | None) -> int:
    """Reckon the schedule NAME anew, and compare each slot with what the file says of it.

    Exit code 1 where a slot is a gap or a double: missing (its row was removed), late (due for more than two minutes,
    and nobody has looked, also where its owner died) or double (a row that ran beside the slots). A slot that failed,
    or was skipped for a reason, is none: it is accounted for.

    WHEN is a date or a time, without a zone in that of the schedule (2026-11-22, 2026-11-22T19:00Z), or an age (7d).
    A time that ends before it begins, or is all to come, is wrong usage (2): it would be clean whatever happens.
    """
    with settings().existing() as registry:
        versions = cast("Ledger", registry.store).schedules(name)
        first, last = (_when(text, versions, registry) for text in (since, until))
        found = registry.audit(name, since=first, until=last)
        is_cut = since is not None or until is not None
        return _write_json(found) if settings().json else _calendar(name, found, is_cut=is_cut)


def _when(text: str | None, versions: Sequence[Schedule], registry: Operations) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        age = timedelta(seconds=_age_s(text))
        try:
            return instant(registry.clock.wall_us() // 1_000_000) - age
        except OverflowError:
            return instant(0)
    if at.tzinfo is not None or not versions:
        return at
    from idemreg.cron import zone_of  # noqa: PLC0415 - for a time without a zone

    return at.replace(tzinfo=zone_of(versions[-1].zone))


def _age_s(text: str) -> float:
    try:
        return DURATION.convert(text, None, None)
    except click.BadParameter:
        msg = f"{text!r} is no date such as 2026-11-22, no time such as 2026-11-22T19:00Z, and no age such as 7d"
        raise click.BadParameter(msg, click.get_current_context(), param_hint="WHEN") from None


def _write_json(found: Iterable[Audited]) -> int:
    is_sound = True
    for one in found:
        is_sound = is_sound and one.is_sound
        fields: dict[str, Any] = one._asdict()
        for field in ("slot", "local"):
            fields[field] = None if fields[field] is None else fields[field].isoformat().replace("+00:00", "Z")
        write_json(fields)
    return 0 if is_sound else UNSOUND


# --- for people -------------------------------------------------------------------------------------------------


def _calendar(name: str, found: Iterable[Audited], *, is_cut: bool) -> int:
    """A line a day with a mark a slot, what is wrong one by one, and the sum of it."""
    states: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong: list[Audited] = []
    unsound = 0
    for day, slots in groupby(found, key=_day):
        of_day = list(slots)
        states.update(one.state for one in of_day)
        reasons.update(one.reason or "no reason" for one in of_day if one.state == "skipped")
        of_day_wrong = [one for one in of_day if not one.is_sound]
        unsound += len(of_day_wrong)
        wrong += of_day_wrong[: TOLD - len(wrong)]
        write(f"{day}  {_marks(of_day)}")
    for one in wrong:
        write_folded(f"{escape(one.task_id)} is {one.state}: {one.reason}")
    if unsound > len(wrong):
        write(f"... and {unsound - len(wrong):,} more; --json tells all")
    _sum_up(name, states, reasons, is_cut=is_cut)
    return UNSOUND if wrong else 0


def _day(one: Audited) -> str:
    return " " * (HEAD_COLUMNS - 2) if one.local is None else one.local.strftime("%Y-%m-%d %a")


def _marks(slots: Sequence[Audited]) -> str:
    if len(slots) > columns() - HEAD_COLUMNS:
        return _counts(Counter(one.state for one in slots))
    return "".join(paint(*MARKS[one.state]) for one in slots)


def _counts(states: Counter[str]) -> str:
    return ", ".join(f"{states[state]:,} {state}" for state in MARKS if states[state])


def _sum_up(name: str, states: Counter[str], reasons: Counter[str], *, is_cut: bool) -> None:
    if not states:
        write_folded(f"{escape(name)} has had no slot {'in that time' if is_cut else 'yet'}")
        return
    legend = ", ".join(f"{mark} {state}" for state, (mark, _) in MARKS.items() if states[state])
    skipped = f" (skipped: {', '.join(f'{count:,} {escape(why)}' for why, count in sorted(reasons.items()))})"
    write_folded(legend)
    write_folded(f"{escape(name)}: {_counts(states)}{skipped if reasons else ''}")
