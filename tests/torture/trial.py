"""What a trial is: something that is tried many thousand times, each time another way, by a seed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BROKE_OFF", "NOT_TRIED", "Tally", "Trial", "again", "is_finding"]

NOT_TRIED: Final = "not tried: "  # so the event of it begins, and the violation where all must be tried
BROKE_OFF: Final = "broke off: "  # so the violation of a part begins that came to no end


@dataclass(slots=True)
class Tally:
    """What one part of a trial, or all of it, has shown."""

    tried: int = 0
    distinct: set[int] = field(default_factory=set)  # a hash of 64 bits of each thing tried
    violations: list[str] = field(default_factory=list)  # a line each: what was broken, and the command that shows it
    events: Counter[str] = field(default_factory=Counter)  # what befell the product meanwhile; for the report

    def add(self, other: Tally) -> None:
        """Count another part in."""
        self.tried += other.tried
        self.distinct |= other.distinct
        self.violations += other.violations
        self.events += other.events

    def not_tried(self, what: str, times: int = 1) -> None:
        """What this machine does not allow: an event. Where CI is set all must be tried, and it is a violation."""
        self.events[NOT_TRIED + what] += times
        if "CI" in os.environ:
            self.violations.append(NOT_TRIED + what)


def is_finding(violation: str) -> bool:
    """Whether it says anything of the product: that nothing was tried does not, nor that a part came to no end."""
    return not violation.startswith((NOT_TRIED, BROKE_OFF))


def again(name: str, seed: int, count: int) -> str:
    """The command that calls ``run(seed, count)`` of a trial once more, with these very values."""
    return f"python -m tests.torture --only {name} --seed {seed} --count {count}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the table in docs/reliability.md.

    ``run(seed, count)`` tries about ``count`` things, chosen by the seed alone as far as the machine allows, and says
    what it found, each with the command that calls it `again`; it may be called in several processes at once. ``part``
    is the ``count`` of one call: a minute's work at most. ``mutants`` are those of `tests.mutants` that it must find,
    each within a hundredth of ``count``. ``crowd`` parts run for each processor: more than one where a part often
    waits, and one beside it can go on. ``told`` are the events that the table tells before all others.
    """

    name: str
    counted: str  # what is counted: "schedules"
    count: int  # in one `make torture`; a tenth in `make torture-ci`
    part: int
    run: Callable[[int, int], Tally]
    mutants: tuple[str, ...] = ()
    crowd: int = 1
    told: tuple[str, ...] = ()
