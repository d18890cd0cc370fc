"""Power cuts at every recorded I/O of three processes and more, each in six ways, judged by what callers were told.

What the processes do is chosen by the seed; in which order their steps fall is up to the machine. So a trace that lost
something is kept, and judged again from its log. What is counted are images: all files that a cut leaves, by a hash
over their names, sizes and bytes. Of the ways (`tests.powercut.cuts.WAYS`) each cut takes the two that find most, and
four that are drawn anew.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Final

from tests.mutants import catalogue_powercut
from tests.powercut import recorder
from tests.powercut.crews import mixed
from tests.powercut.run import record_and_judge
from tests.support.compiled import NoCompilerError
from tests.torture.trial import NOT_TRIED, Tally, Trial

__all__ = ["TRIAL"]

WAYS: Final = 6
TRACES: Final = 1_000  # of one part, at most: each has seeds of its own
SHOWN: Final = 3  # losses of a trace
OF_OTHERS: Final = ("kept-claim-not-synced", "step-not-synced")  # mutants that another trial has to find as well


def run(seed: int, count: int) -> Tally:
    """Trace after trace, until so many distinct images were judged, or one has lost something."""
    tally = Tally()
    try:
        recorder.shim()
    except NoCompilerError as error:  # nothing to try it with is no success
        tally.violations.append(f"{NOT_TRIED}{error}")
        return tally
    for one in range(seed * TRACES, (seed + 1) * TRACES):
        report = record_and_judge(one, ways=WAYS, keep=tempfile.gettempdir(), **mixed(one))
        tally.tried += report.images
        tally.distinct |= report.distinct
        tally.events += report.events
        tally.events["trace"] += 1
        tally.events["body entered"] += report.entries
        tally.events["end acknowledged"] += report.ends
        tally.events["image opened by a whole registry"] += report.reboots
        if report.losses:
            log = Path(tempfile.gettempdir(), f"powercut-{one}.log")
            again = f"python -m tests.powercut --seed {one} --ways {WAYS} --log {shlex.quote(str(log))}"
            tally.violations += [f"{loss}; again: {again}" for loss in report.losses[:SHOWN]]
        if report.losses or len(tally.distinct) >= count:
            break
    return tally


TRIAL: Final = Trial(
    "powercut",
    "images",
    1_000_000,
    20_000,
    run,
    (*OF_OTHERS, *(one.name for one in catalogue_powercut.MUTANTS)),
)
