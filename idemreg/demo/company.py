"""The processes of act two, and what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

from idemreg.demo.process import DemoError, Process

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["AT", "DONE", "SUSPENDED", "Answer", "Company", "Scheduler"]

PROGRAM: Final = "from idemreg.demo.issuer import main; main()"

# How an answer ends: all is done, in the middle of a job, or nothing is done since the clock is in doubt.
DONE: Final = "done"
AT: Final = "at"
SUSPENDED: Final = "suspended"


class Answer(NamedTuple):
    """What a scheduler said to one order: serials and codes of errors by task_id, and how it ended."""

    issued: Mapping[str, str]
    failed: Mapping[str, str]
    end: str
    detail: str

    def must_be(self, end: str, *issued: str, failed: Mapping[str, str] | None = None) -> Answer:
        """`DemoError` unless just these coupons were issued, in this order."""
        if self.end != end or [*self.issued] != [*issued] or self.failed != (failed or {}):
            msg = (
                f"a scheduler should have answered {_told(end, issued, failed or {})};"
                f" it answered {_told(self.end, self.issued, self.failed)}"
            )
            raise DemoError(msg)
        return self


def _told(end: str, issued: Iterable[str], failed: Mapping[str, str]) -> str:
    errors = "".join(f", {code} for {task_id}" for task_id, code in failed.items())
    return f"{end!r} (coupons for {', '.join(issued) or 'nothing'}{errors})"


class Scheduler(Process):
    """One process that looks at the schedule when it is told so."""

    def __init__(self, name: str, *arguments: str) -> None:
        super().__init__(PROGRAM, *arguments, name)
        self.name: Final = name

    def look(self, moment: str = "-") -> Answer:
        """Run what is due; ``moment`` is where in the middle of a job it waits."""
        self.tell(f"look {moment}")
        return self.answer()

    def issue(self, task_id: str) -> Answer:
        """Issue a coupon by hand."""
        self.tell(f"issue {task_id}")
        return self.answer()

    def beat(self) -> None:
        """Let its heart beat, in the middle of a job."""
        self.tell("beat")
        self.expect("beaten")

    def expect(self, word: str) -> None:
        """`DemoError` unless this is what it says next."""
        if (line := self.line()) != word:
            msg = f"scheduler {self.name} said {line!r} in place of {word!r}"
            raise DemoError(msg)

    def answer(self) -> Answer:
        """All that it says up to the end of its answer."""
        issued: dict[str, str] = {}
        failed: dict[str, str] = {}
        while True:
            word, _, rest = self.line().partition(" ")
            task_id, _, detail = rest.partition(" ")
            if word == "issued":
                issued[task_id] = detail
            elif word == "failed":
                failed[task_id] = detail
            else:
                return Answer(issued, failed, word, rest)


class Company:
    """As a context manager: no scheduler outlives the block, however it is left, also one that is stopped."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._schedulers: list[Scheduler] = []

    def hire(self, name: str) -> Scheduler:
        """Start a scheduler, and wait until it is ready."""
        scheduler = Scheduler(name, *self._arguments)
        self._schedulers.append(scheduler)
        scheduler.expect("ready")
        return scheduler

    def dismiss(self) -> None:
        """Let all that live end in order."""
        for scheduler in self._schedulers:
            if scheduler.process.poll() is None:
                scheduler.dismiss()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for scheduler in self._schedulers:
            scheduler.kill()
