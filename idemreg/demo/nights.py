"""The account of act two: the nights as they should be, by the audit, by the rows and by the witness, side by side.

The nights are counted here by plain dates, not by the expression; so the audit is compared with something, too.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg.counted import counted
from idemreg.demo.account import BY_HAND, BY_HOOK, failure, program
from idemreg.demo.book import ENTERED, ISSUED
from idemreg.errors import ClaimLostError
from idemreg.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from idemreg.audit import Audited
    from idemreg.demo.book import Entry
    from idemreg.model import Task

__all__ = ["BY_HAND", "OPENING", "SHOWN_COLUMNS", "Account", "Late", "Told", "shown"]

OPENING: Final = """\
Act two: a coupon is issued each night at 03:00, and things go wrong.

Processes and signals are real. The time is a file that all of them read, so
nights pass in a moment; it stands in front of each line, as in Shanghai."""

RUN: Final = "run"
SKIPPED: Final = "skipped"


class Late(NamedTuple):
    """The owner that came back too late, who had taken its task over, and the code of the error that it got."""

    task_id: str
    owner: str
    taker: str
    code: str


class Told(NamedTuple):
    """What happened, as far as the parent saw it. ``nights``: each slot that there should be, with its time."""

    database: str
    witness: str
    nights: Mapping[str, datetime]
    alarm: str
    late: Late
    seconds: float


def shown(instant: datetime) -> str:
    """For people, all of one width."""
    return f"{instant:%a} {instant.day:2} {instant:%b %H:%M}"


SHOWN_COLUMNS: Final = len("Mon 23 Nov 03:00")


class Account:
    """Compares, and tells."""

    def __init__(
        self, told: Told, audited: Sequence[Audited], rows: Mapping[str, Task], entries: Sequence[Entry]
    ) -> None:
        self._told = told
        self._audited = {one.task_id: one for one in audited}
        self._rows = rows
        self._entries = entries
        self._issued = [one for one in entries if one.what == ISSUED]

    def disagreements(self) -> list[str]:
        """Whatever does not hold, one line each."""
        return [*self._of_slots(), *self._of_audit(), *self._of_late(), *self._of_serials(), *self._of_clock()]

    # --- what must hold -----------------------------------------------------------------------------------------

    def _of_slots(self) -> Iterator[str]:
        """Each slot has run once, or is skipped for a reason; the coupon out in the world is the one that is stored."""
        coupons = Counter(one.task_id for one in self._issued)
        bodies = Counter(one.task_id for one in self._entries if one.what == ENTERED)
        for task_id in self._told.nights:
            row, found = self._rows.get(task_id), self._audited.get(task_id)
            state = "without a row" if row is None or found is None else found.state
            if state not in {RUN, SKIPPED}:
                yield f"{task_id}: {state}, neither run nor skipped"
            if state == SKIPPED and not (found and found.reason):
                yield f"{task_id}: skipped, and nothing says why"
            if coupons[task_id] != (wanted := int(state != SKIPPED)):
                yield f"{task_id}: {counted(coupons[task_id], 'coupon')}, not {wanted}"
            if bodies[task_id] != (wanted := wanted + (task_id == self._told.late.task_id)):
                yield f"{task_id}: its job was entered {counted(bodies[task_id], 'time')}, not {wanted}"
            if row is not None and state == RUN and self._stored(row) != self._serial(task_id):
                yield f"{task_id}: {self._stored(row)} is stored, and {self._serial(task_id)} was issued"
        for task_id in sorted({*coupons, *bodies} - {*self._told.nights}):
            if task_id not in self._rows:
                yield f"{task_id}: the witness saw it, and it has no row"
            elif coupons[task_id] != 1 or bodies[task_id] != 1:
                executions = counted(bodies[task_id], "execution")
                yield f"{task_id}: {counted(coupons[task_id], 'coupon')} by {executions}, not one by one"

    def _of_audit(self) -> Iterator[str]:
        for one in self._audited.values():
            if not one.is_sound:
                yield f"{one.task_id}: {one.state} ({one.reason}), says the audit"
        for task_id in sorted(self._told.nights.keys() ^ self._audited.keys()):
            whose = "the audit" if task_id in self._audited else "the calendar"
            yield f"{task_id}: a slot by {whose} alone"

    def _of_late(self) -> Iterator[str]:
        """The late owner got the error, and no coupon of its is out; the taker's is, under a larger token."""
        late = self._told.late
        tokens = {one.by: one.token for one in self._entries if one.task_id == late.task_id}
        if late.code != ClaimLostError.code:
            yield f"{late.task_id}: the late owner got {late.code!r}, not {ClaimLostError.code!r}"
        if not 0 < tokens.get(late.owner, 0) < tokens.get(late.taker, 0):
            yield f"{late.task_id}: the taker's token is not larger than the late owner's: {tokens}"
        if [one.by for one in self._issued if one.task_id == late.task_id] != [late.taker]:
            yield f"{late.task_id}: its coupon is not the taker's alone"

    def _of_serials(self) -> Iterator[str]:
        """None repeats, and those of a process only grow."""
        for serial, times in Counter(one.serial for one in self._issued).items():
            if times > 1:
                yield f"{serial}: this serial was issued {times} times"
        last: dict[str, str] = {}
        for one in self._issued:
            if one.serial < last.get(one.by, ""):
                yield f"{one.serial}: a serial that went back, behind {last[one.by]}"
            last[one.by] = one.serial

    def _of_clock(self) -> Iterator[str]:
        alarm = self._rows.get(self._told.alarm)
        if alarm is None or alarm.status is not Status.SUCCEEDED or alarm.settled_by != BY_HAND:
            yield f"{self._told.alarm}: no alarm that an operator has settled"

    @staticmethod
    def _stored(row: Task) -> str | None:
        found: str | None = None if row.result is None else json.loads(row.result)
        return found

    def _serial(self, task_id: str) -> str | None:
        return next((one.serial for one in self._issued if one.task_id == task_id), None)

    # --- telling ------------------------------------------------------------------------------------------------

    def failure(self, found: list[str]) -> str:
        """The loud end: what disagrees, and where to look."""
        return failure(found, f"registry {self._told.database}; witness {self._told.witness}")

    def facts(self) -> dict[str, Any]:
        """The account as one object."""
        states = Counter(one.state for one in self._audited.values())
        return {
            "act": 2,
            "slots": len(self._told.nights),
            "run": states[RUN],
            "skipped": states[SKIPPED],
            "serials": len(self._issued),
            "fenced": 1,  # or there is no account; so with the next
            "alarm": self._told.alarm,
            "seconds": round(self._told.seconds, 3),
            "path": self._told.database,
            "witness": self._told.witness,
        }

    def tell(self) -> str:
        """The account, to be read by people, on 80 columns but for the commands at its end."""
        late, facts = self._told.late, self.facts()
        lines = [
            "",
            f"What became of the {facts['slots']} slots, by the audit and by a witness outside the registry",
            "",
            f"  {'slot':{SHOWN_COLUMNS}}  state    coupon",
            *(f"  {shown(at)}  {self._line(task_id)}" for task_id, at in self._told.nights.items()),
            "",
            f"  slots               {facts['run']} ran exactly once, {facts['skipped']} was skipped for a reason",
            "  audit               clean: none is late, missing or double",
            f"  late owner          {late.owner} was fenced by ClaimLostError; the coupon of {late.taker} stands",
            f"  serial numbers      {facts['serials']}, one by hand: none repeats, none goes back",
            "  clock               1 alarm, settled by an operator",
            "",
            f"In {self._told.seconds:.1f} s. Look at the calendar, at a night, and at the witness:",
            *self._commands(),
        ]
        return "\n".join(lines)

    def _line(self, task_id: str) -> str:
        found = self._audited[task_id]
        if found.state == SKIPPED:
            return f"{SKIPPED}  ({found.reason})"
        by = next(one.by for one in self._issued if one.task_id == task_id)
        return f"{found.state:7}  {self._serial(task_id)}  by {by}{self._circumstances(task_id)}"

    def _circumstances(self, task_id: str) -> str:
        if task_id == self._told.late.task_id:
            return f", not by {self._told.late.owner}"
        row = self._rows[task_id]
        if row.settled_by == BY_HOOK:
            return ", looked up"
        late_h = round(row.updated_at / 1_000_000 - self._told.nights[task_id].timestamp()) // 3_600
        return f", {late_h} h late" if late_h else ""

    def _commands(self) -> list[str]:
        registry = f"{program()} --db {shlex.quote(self._told.database)}"
        night = self._told.late.task_id
        return [
            f"  {registry} audit coupons --until {max(self._told.nights.values()):%Y-%m-%dT%H:%M}",
            f"  {registry} show {night}",
            f"  grep '^{night} ' {shlex.quote(self._told.witness)}",
        ]
