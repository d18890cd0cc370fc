"""A scheduler of act two: a process that issues the coupons that are due, and may be killed or stopped at any time.

Lines in:  ``look MOMENT`` (run what is due; MOMENT is where a job says that it is in the middle, or ``-``),
           ``issue TASK_ID`` (a coupon by hand); in the middle of a job ``beat`` (the heartbeat) and ``go``.
Lines out: ``ready`` · ``at MOMENT`` · ``beaten`` · ``issued TASK_ID SERIAL`` · ``failed TASK_ID CODE`` · ``done`` ·
           ``suspended ALARM`` (in place of ``done``: the clock is in doubt).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from idemreg.claim import current_claim
from idemreg.demo.book import Book
from idemreg.demo.fileclock import FileClock
from idemreg.demo.witness import Witness
from idemreg.demo.worker import say
from idemreg.errors import IdemregError
from idemreg.heartbeat import heart
from idemreg.model import Verdict
from idemreg.options import Verified
from idemreg.registry import Registry

if TYPE_CHECKING:
    from datetime import datetime

    from idemreg.model import Task

__all__ = ["CRON", "ENTERED", "ISSUED", "LEASE_S", "SCHEDULE", "ZONE", "Issuer"]

SCHEDULE: Final = "coupons"
CRON: Final = "0 3 * * *"
ZONE: Final = "Asia/Shanghai"
PREFIX: Final = "COUP"
LEASE_S: Final = 60

# Where a job may be asked to say that it is in the middle, and to wait there.
ENTERED: Final = "entered"
ISSUED: Final = "issued"


class Issuer:
    """The job on its schedule, and the loop around it."""

    def __init__(self, registry: Registry, book: Book, name: str) -> None:
        self._registry = registry
        self._book = book
        self._name = name
        self._serials = registry.serials(PREFIX)
        self._moment = "-"
        registry.scheduled(
            SCHEDULE, cron=CRON, tz=ZONE, coalesce="all", lease=LEASE_S, on_crash="verify", verify=self._look_up
        )(self._issue)

    def work(self) -> None:
        """Do as told until there is nothing more."""
        say("ready")
        for line in iter(sys.stdin.readline, ""):
            word, argument = line.split()
            if word == "look":
                self._moment = argument
                self._look()
            else:
                say(f"issued {argument} {self._registry.run(argument, self._issue, name='coupon by hand').result}")
                say("done")

    def _look(self) -> None:
        for run in self._registry.run_due():
            if run.error is None:
                say(f"issued {run.task_id} {run.outcome.result}")
            else:
                code = run.error.code if isinstance(run.error, IdemregError) else type(run.error).__name__
                say(f"failed {run.task_id} {code}")
        alarm = self._registry.check_clock().alarm
        say("done" if alarm is None else f"suspended {alarm}")

    # --- the job ------------------------------------------------------------------------------------------------

    def _issue(self, slot: datetime | None = None) -> str:  # noqa: ARG002 - the claim tells it as well
        """Issue one coupon, which no transaction reaches; so the last thing before it is a look at the lease."""
        claim = current_claim()
        self._book.enter(claim.task_id, self._name, claim.token)
        self._pass(ENTERED)
        claim.check()
        serial = self._serials.next()
        self._book.issue(claim.task_id, serial, self._name, claim.token)
        self._pass(ISSUED)
        return serial

    def _pass(self, moment: str) -> None:
        if moment != self._moment:
            return
        self._moment = "-"
        say(f"at {moment}")
        for line in iter(sys.stdin.readline, ""):
            if line.strip() == "go":
                return
            heart.step()
            say("beaten")
        os._exit(1)  # whoever started this process is gone, and in the middle of a job there is no orderly end

    def _look_up(self, task: Task, slot: datetime | None = None) -> Verified:  # noqa: ARG002
        """The verify hook: whether the coupon of the owner that is gone is out in the world."""
        entry = self._book.issued(task.task_id)
        if entry is None:
            return Verified(Verdict.DID_NOT_HAPPEN, evidence="no coupon of it in the witness file")
        return Verified(Verdict.HAPPENED, entry.serial, f"{entry.serial} is in the witness file")


def main() -> None:
    """Be a scheduler: the database, the witness file, the clock and the name are the arguments."""
    database, witness, clock, name = sys.argv[1:]
    with Registry(database, clock=FileClock(clock)) as registry:
        Issuer(registry, Book(Witness(witness)), name).work()
