"""One worker of the demonstration: a process that takes deliveries from its standard input, and may be killed any time.

It is what a queue consumer looks like. Its two jobs differ in what is known after a crash: whether a coupon was issued
can be looked up, so a hook is asked; a letter that may be in the post is a case for a person.

Lines in:  ``KIND NUMBER MOMENT`` (a delivery; MOMENT is where the job says that it is in the middle, or ``-``), ``go``.
Lines out: ``ready`` · ``at MOMENT`` · ``ran`` · ``replayed`` · ``again CODE`` · ``parked CODE``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from idemreg.claim import current_claim
from idemreg.demo.witness import Witness
from idemreg.errors import IdemregError
from idemreg.model import Verdict
from idemreg.options import Verified
from idemreg.registry import Registry

if TYPE_CHECKING:
    from idemreg.idempotent import IdempotentFunction
    from idemreg.model import Task

__all__ = ["BEFORE", "BEHIND", "COUPON", "LETTER", "RUNNING"]

COUPON: Final = "coupon"
LETTER: Final = "letter"

# Where a job may be asked to say that it is in the middle. At the first two it waits for what comes: to be killed, or
# to go on. At the third it runs on, so that the kill meets it wherever it happens to be.
BEFORE: Final = "before"
BEHIND: Final = "behind"
RUNNING: Final = "running"

# A twin that runs is waited for; a delivery that waited in vain is delivered again.
WAIT_S: Final = 5


class Worker:
    """The jobs, and the loop around them."""

    def __init__(self, registry: Registry, witness: Witness) -> None:
        self._witness = witness
        self._moment = "-"
        self._jobs: dict[str, IdempotentFunction[[int], str]] = {
            COUPON: registry.idempotent(
                "coupon:{number}", name="issue coupon", on_crash="verify", verify=self._look_up, wait=WAIT_S
            )(self._issue_coupon),
            LETTER: registry.idempotent("letter:{number}", name="post letter", on_crash="hold", wait=WAIT_S)(
                self._post_letter
            ),
        }

    def work(self) -> None:
        """Take deliveries until there are no more."""
        say("ready")
        for line in iter(sys.stdin.readline, ""):
            kind, number, self._moment = line.split()
            say(self._deliver(self._jobs[kind], int(number)))

    @staticmethod
    def _deliver(job: IdempotentFunction[[int], str], number: int) -> str:
        """What a consumer of any queue does: acknowledge what is done, give back what may succeed later."""
        try:
            outcome = job.call(number)
        except IdemregError as error:
            return f"{'again' if error.retryable else 'parked'} {error.code}"
        return "replayed" if outcome.replayed else "ran"

    # --- the jobs -----------------------------------------------------------------------------------------------

    def _issue_coupon(self, number: int) -> str:
        return self._have_effect(f"coupon {number} issued")

    def _post_letter(self, number: int) -> str:
        return self._have_effect(f"letter {number} posted")

    def _have_effect(self, what: str) -> str:
        """The body of both jobs: one effect outside the registry, where no transaction reaches."""
        claim = current_claim()
        self._pass(RUNNING)
        self._pass(BEFORE)
        self._witness.record(claim.task_id, f"token {claim.token}, attempt {claim.attempt}, process {os.getpid()}")
        self._pass(BEHIND)
        return what

    def _pass(self, moment: str) -> None:
        if moment != self._moment:
            return
        say(f"at {moment}")
        if moment != RUNNING and not sys.stdin.readline():
            os._exit(1)  # whoever started this worker is gone, and in the middle of a job there is no orderly end

    def _look_up(self, task: Task, number: int) -> Verified:
        """The verify hook: whether the effect of the worker that died had happened."""
        evidence = self._witness.evidence(task.task_id)
        if evidence is None:
            return Verified(Verdict.DID_NOT_HAPPEN, evidence="not in the witness file")
        return Verified(Verdict.HAPPENED, f"coupon {number} issued", evidence)


def say(words: str) -> None:
    """One line to whoever started this worker."""
    os.write(sys.stdout.fileno(), f"{words}\n".encode())


def main() -> None:
    """Be a worker, with the database and the witness file as arguments."""
    database, witness = sys.argv[1:]
    with Registry(database) as registry:
        Worker(registry, Witness(witness)).work()
