"""Behind the loss of a file under a live process: no job is entered, and nothing is written on.

SQLite commits into a file that was deleted, replaced or cut, and says OK. What runs then would run once more, for
whoever opens what is there next; and what is written then may damage what is another's now.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from idemreg import Registry
from idemreg.lockfile import SIZE
from tests.torture.corrupted.asking import BUSY_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.torture.corrupted.asking import Questions

__all__ = ["Blow", "stays_lost", "strike", "vanished"]

LEAST_PAGE: Final = 512


class Blow(NamedTuple):
    """What befalls which file of an open registry. ``left``: bytes of one that is cut.

    ``used``: bytes of the -wal before that are not in the database yet; ``seen``: of the database when the process
    looked at its size last.
    """

    kind: str
    suffix: str
    left: int = 0
    used: int = 0
    seen: int = sys.maxsize

    @property
    def words(self) -> str:
        return f"{self.kind} of {self.suffix or 'the database'}"

    @property
    def is_loss(self) -> bool:
        """Whether the process must see it: what a file has lost was in use.

        A database that ends behind a page may be one that another program has made smaller, and nothing is lost where
        the tables can be read; one that has grown since it was seen, and was cut to less, is larger than it was. A -wal
        of which all is in the database begins anew. A flip is no loss of a file.
        """
        if self.kind != "cut":
            return self.kind != "flip"
        if self.suffix == "-wal":
            return self.left < self.used
        if self.suffix == "-lock":
            return self.left < SIZE
        return not self.left or (self.left < self.seen and self.left % LEAST_PAGE > 0)

    @property
    def undoes_an_end(self) -> bool:
        """Whether an end that is stored behind it lies in a file that nobody will look at, or with a gap before it."""
        return self.is_loss and self.suffix != "-lock" and (self.kind != "cut" or self.suffix == "-wal")


def strike(
    questions: Questions, registry: Registry, blow: Blow, hit: Callable[[], object], *, is_durable: bool
) -> None:
    """In the middle of a job: its end is not acknowledged.

    Not ``is_durable``: an end is not synced, and only before it is written is the -wal looked at, for its size.
    """
    task = questions.new(registry, hit)
    if blow.undoes_an_end and (is_durable or blow.kind == "cut") and task in questions.known:
        questions.wrong.append(f"{task} was acknowledged behind the {blow.words} in the middle of its job")


def stays_lost(questions: Questions, registry: Registry, blow: Blow) -> None:
    """The next two tasks do not run, and the second is not even stored; nor is a -wal that was cut filled up.

    Without the lock file alone claims are stored, and put back.
    """
    tasks = [questions.new(registry)]
    found = _state(questions.path)
    tasks.append(questions.new(registry))
    if not blow.is_loss:
        return
    questions.wrong += [f"{task} was entered behind the {blow.words}" for task in tasks if questions.entered[task]]
    if blow.suffix != "-lock" and _state(questions.path) != found:
        questions.wrong.append(f"what is there was written to behind the {blow.words}")
    if blow.suffix == "-wal" and blow.kind == "cut":
        size = questions.path.with_name(f"{questions.path.name}-wal").stat().st_size
        if size != blow.left:
            questions.wrong.append(f"a -wal that was cut to {blow.left} bytes has {size}")


def vanished(questions: Questions) -> None:
    """Beside a lock file that tells of it, a database that is gone is not made anew by the next opener."""
    with questions.asking("opening what is gone"), Registry(questions.path, busy_timeout=BUSY_S) as registry:
        registry.open()
        questions.wrong.append("a database that was deleted was made anew")
    if questions.path.exists():
        questions.wrong.append("a database that was deleted is there again")


def _state(path: Path) -> list[tuple[int, int]]:
    """The sizes and times of what a commit would change."""
    there = [one.stat() if one.exists() else None for one in (path, path.with_name(f"{path.name}-wal"))]
    return [(0, 0) if one is None else (one.st_size, one.st_mtime_ns) for one in there]
