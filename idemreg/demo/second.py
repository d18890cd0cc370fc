"""Act two: a coupon is issued each night at 03:00, and three things go wrong, one after the other.

A scheduler is killed, and nobody is there for three nights. The clock is set back across midnight. An owner is paused
past its lease, and comes back. The processes are real, and so are the signals; the time is a file, which this process
writes and all of them read, so that nights pass at once and each process has the same instant.

A line is told once the processes have answered as it says. Where they answer otherwise the act is over.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

from idemreg.clock import Clock
from idemreg.cron import Cron
from idemreg.demo import nights
from idemreg.demo.book import ENTERED, ISSUED, Book
from idemreg.demo.company import AT, DONE, SUSPENDED, Company
from idemreg.demo.fileclock import ClockFile, FileClock
from idemreg.demo.issuer import CRON, LEASE_S, SCHEDULE, ZONE
from idemreg.demo.process import FAILED, DemoError, complain
from idemreg.demo.witness import Witness
from idemreg.errors import ClaimLostError, ScheduleError
from idemreg.registry import Registry
from idemreg.slots import seconds_of, slot_id

if TYPE_CHECKING:
    from idemreg.demo.company import Scheduler

__all__ = ["FILE", "SecondAct", "lacking"]

FILE: Final = "coupons.db"

# Shanghai has no summer time: its clock is eight hours ahead of UTC in every night of the story. That is in the past,
# so that `idemreg audit`, which goes by the machine's clock, shows all of it afterwards.
SHANGHAI: Final = timezone(timedelta(hours=8))
NOVEMBER: Final = datetime(2025, 11, 1, tzinfo=SHANGHAI)
FIRST_DAY: Final = 23
LAST_DAY: Final = 31  # of November, as it were: the first of December

BY_HAND: Final = "coupon:by-hand"
RENEWAL: Final = timedelta(seconds=LEASE_S * 2 // 3)
PAUSE: Final = timedelta(seconds=LEASE_S * 5)

EVIDENCE: Final = "the radio says the same"


def lacking() -> str | None:
    """What act two needs and is not here, and how to get it; None where nothing is lacking."""
    try:
        Cron(CRON, ZONE)
    except ScheduleError as error:
        hint = f"\n  {error.hint}" if error.hint else ""
        return f"act two is left out, for it needs a schedule: {error.message}{hint}"
    return None


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """An instant of November, by the clock in Shanghai."""
    return NOVEMBER + timedelta(days=day - 1, hours=hour, minutes=minute)


def slot(day: int) -> str:
    """The task_id of that night's coupon."""
    return slot_id(SCHEDULE, seconds_of(at(day, 3)))


class SecondAct:
    """The story from its first line to the account."""

    def __init__(self, folder: str, *, as_json: bool) -> None:
        self._database = os.path.join(folder, FILE)
        self._witness = Witness(os.path.join(folder, "coupons.log"))
        self._clock = ClockFile(os.path.join(folder, "clock"), at(22, 12))
        self._as_json = as_json

    def play(self) -> int:
        """From the first line to the account; the exit code."""
        real = Clock()
        began = real.monotonic()
        self._say(nights.OPENING)
        with (
            Registry(self._database, clock=FileClock(self._clock.path)) as registry,
            Company(self._database, self._witness.path, self._clock.path) as company,
        ):
            second = self._killed(company)
            alarm = self._set_back(registry, second)
            self._held(registry, second)
            late = self._paused(company, second)
            company.dismiss()
            wanted = {slot(day): at(day, 3) for day in range(FIRST_DAY, LAST_DAY + 1)}
            told = nights.Told(self._database, self._witness.path, wanted, alarm, late, real.monotonic() - began)
            audited = list(registry.audit(SCHEDULE))
            rows = {row.task_id: row for row in registry.tasks()}
        return self._conclude(nights.Account(told, audited, rows, Book(self._witness).entries()))

    def _conclude(self, account: nights.Account) -> int:
        if found := account.disagreements():
            return complain(account.failure(found), FAILED)
        sys.stdout.write(f"{json.dumps(account.facts()) if self._as_json else account.tell()}\n")
        return 0

    # --- the story ----------------------------------------------------------------------------------------------

    def _killed(self, company: Company) -> Scheduler:
        self._say("\nA scheduler is killed, and nobody is there for three nights\n")
        first = company.hire("A")
        first.look().must_be(DONE)
        self._tell("scheduler A starts")
        self._pass_to(at(23, 3))
        first.look().must_be(DONE, slot(23))
        self._tell("A issues the night's coupon")
        self._pass_to(at(24, 3))
        first.look(ISSUED).must_be(AT)
        first.kill()
        self._tell("A issues one more, and gets SIGKILL before it records it")
        for day in (25, 26, 27):
            self._pass_to(at(day, 3))
            self._tell("03:00 passes, and nobody is there")
        self._pass_to(at(27, 9))
        second = company.hire("B")
        self._tell("scheduler B starts, and catches up:")
        second.look().must_be(DONE, slot(25), slot(26), slot(27))
        self._more("24 Nov: a hook looks it up; that coupon is out, none again")
        self._more("25, 26, 27 Nov: a coupon each, in order")
        return second

    def _set_back(self, registry: Registry, second: Scheduler) -> str:
        self._say("\nThe clock is set back across midnight\n")
        self._pass_to(at(28, 3))
        before = second.look().must_be(DONE, slot(28)).issued[slot(28)]
        self._tell("B issues the night's coupon")
        self._pass_to(at(28, 3, 10))
        self._tell("somebody sets the clock back by 3 h 20 min ...")
        self._clock.set(at(27, 23, 50))
        alarm = second.look().must_be(SUSPENDED).detail
        self._tell("B sees it, raises an alarm, and starts no slot meanwhile")
        self._pass_to(at(28, 3))
        second.look().must_be(SUSPENDED)
        self._tell("03:00 comes a second time; the coupon does not")
        by_hand = second.issue(BY_HAND).must_be(DONE, BY_HAND).issued[BY_HAND]
        if by_hand <= before:
            msg = f"the serial went back with the clock: {before}, then {by_hand}"
            raise DemoError(msg)
        self._tell("a coupon by hand: its serial is a later one all the same")
        self._pass_to(at(28, 3, 5))
        registry.confirm_clock(evidence=EVIDENCE, by=nights.BY_HAND)
        second.look().must_be(DONE)
        self._tell("an operator confirms the clock; B goes on, nothing is due")
        return alarm

    def _held(self, registry: Registry, second: Scheduler) -> None:
        self._say("\nA night off, on purpose\n")
        self._pass_to(at(28, 20))
        registry.pause(SCHEDULE)
        self._tell("an operator pauses the schedule")
        self._pass_to(at(29, 3))
        second.look().must_be(DONE)
        self._tell("the night's slot is skipped, and its row says why")
        self._pass_to(at(29, 9))
        registry.resume(SCHEDULE)
        self._tell("the schedule goes on")

    def _paused(self, company: Company, second: Scheduler) -> nights.Late:
        self._say("\nAn owner is paused past its lease\n")
        self._pass_to(at(30, 3))
        second.look(ENTERED).must_be(AT)
        self._tell(f"B begins the night's coupon, with a lease of {LEASE_S} s")
        third = company.hire("C")
        self._clock.advance(RENEWAL)
        second.beat()
        self._clock.advance(RENEWAL)
        third.look().must_be(DONE)
        self._tell("B's heartbeat renews the lease; C looks, and lets it be")
        second.stop()
        self._tell("B is paused (SIGSTOP), and its heartbeat with it ...")
        self._clock.advance(PAUSE)
        third.look().must_be(DONE, slot(30))
        self._tell("C finds the lease over and no coupon out: C issues it")
        second.resume()
        second.tell("go")
        code = second.answer().must_be(DONE, failed={slot(30): ClaimLostError.code}).failed[slot(30)]
        self._tell("B wakes up (SIGCONT), goes on, and gets ClaimLostError")
        self._pass_to(at(31, 3))
        third.tell("look -")
        issued = [*second.look().issued, *third.answer().issued]
        if issued != [slot(31)]:
            msg = f"two schedulers that looked at once have issued {issued}"
            raise DemoError(msg)
        self._tell("B and C look at the same instant: one of them issues it")
        return nights.Late(slot(30), second.name, third.name, code)

    # --- time, and telling --------------------------------------------------------------------------------------

    def _pass_to(self, instant: datetime) -> None:
        self._clock.advance(instant - self._clock.now)

    def _tell(self, words: str) -> None:
        """One event, with the time at which it happened, by the clock that the processes see."""
        self._say(f"  {nights.shown(self._clock.now)}  {words}")

    def _more(self, words: str) -> None:
        self._say(f"  {'':{nights.SHOWN_COLUMNS}}  {words}")

    def _say(self, words: str) -> None:
        if not self._as_json:
            sys.stdout.write(f"{words}\n")
            sys.stdout.flush()
