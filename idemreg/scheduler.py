"""The loop that waits for the next slot: a thread a schedule, so that a long job of one delays no other.

It is one more caller of `run_due`, and owns nothing: beside it, or in place of it after a crash, anybody else may call.
A wait is cut into naps, since neither clock can be slept by: the monotonic one may stand still while the machine is
suspended, and the wall clock may be set. So a slot is late by one nap at most, whatever happens. At least once a minute
it looks, for slots that failed, or wait behind others.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Final, cast

from idemreg.ends import describe
from idemreg.errors import ChecksumKeyError, IdemregError, ScheduleError, StoreVersionError, SyncFailedError
from idemreg.slotted import run_due

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from idemreg.cron import Cron
    from idemreg.keyed import ErrorDetail
    from idemreg.recovery import Recovery
    from idemreg.registry import Registry
    from idemreg.scheduled import SlotRun

__all__ = ["FOR_GOOD", "LOOK_S", "NAP_S", "ClockWatch", "Loops", "Scheduler", "keep"]

NAP_S: Final = 5.0
LOOK_S: Final = 60
WAKE_S: Final = 0.5

# What no later look of this process can heal: its files were deleted, moved or replaced, or a sync of them has failed
# (`FilesReplacedError` is one of those as well); it is too old for them; it has another key. Whoever is started anew,
# perhaps behind a person, opens what is there then. A lock that is not free, or a disk that is full, heals.
FOR_GOOD: Final = (SyncFailedError, StoreVersionError, ChecksumKeyError)


class Loops:
    """Loops in threads of their own, until they are told to stop.

    Each is given a ``pause``: it lets seconds pass, and says whether to stop.
    """

    def __init__(self, loops: Mapping[str, Callable[[Callable[[float], bool]], None]]) -> None:
        self._stop = threading.Event()
        self._ended_by: list[BaseException] = []
        self.on_wait: Callable[[], None] = _nothing  # called again and again, while what runs goes on behind `stop`
        self._threads = [
            threading.Thread(target=self._keep, args=(loop,), name=f"idemreg {name}") for name, loop in loops.items()
        ]

    def run(self) -> None:
        """Return once they were stopped, and the jobs that ran have ended.

        An error that ends one stops the others, and is raised then; RuntimeError from it where it is no Exception.
        """
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            # Not for ever: the kernel may hand a signal to another thread, and its handler runs once this one wakes.
            while thread.is_alive():
                was_stopped = self._stop.is_set()
                thread.join(WAKE_S)
                if was_stopped and thread.is_alive():
                    self.on_wait()
        for error in self._ended_by:
            if isinstance(error, Exception):
                raise error
            msg = f"a loop was ended by {describe(error, 'message')}"
            raise RuntimeError(msg) from error  # SystemExit would end the program without a word

    def _keep(self, loop: Callable[[Callable[[float], bool]], None]) -> None:
        try:
            loop(self._pause)
        except BaseException as error:  # noqa: BLE001 - a thread that ends by it would tell nobody
            self._ended_by.append(error)
            self._stop.set()

    def _pause(self, seconds: float) -> bool:
        return self._stop.wait(min(seconds, threading.TIMEOUT_MAX))

    def stop(self) -> None:
        """Once what is due now has run, look no more. Safe in a handler of a signal, while `run` waits."""
        self._stop.set()


def _nothing() -> None:
    """Nobody wants to hear of it."""


class Scheduler(Loops):
    """Runs what comes due on a registry until it is told to stop. ``tell``: of each slot, and of each error."""

    def __init__(self, registry: Registry, tell: Callable[[SlotRun | IdemregError], None]) -> None:
        watch = ClockWatch(registry, tell)
        super().__init__({name: functools.partial(keep, registry, name, tell, watch) for name in registry.schedules})


class ClockWatch:
    """Tells of each suspension by the clock once, however many schedules wait for its end."""

    def __init__(self, registry: Registry, tell: Callable[[SlotRun | IdemregError], None]) -> None:
        self._registry = registry
        self._tell = tell
        self._told: str | None = None  # the last alarm: its name never comes again
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Tell of an alarm that is new, by what the last look at a schedule has found."""
        found = self._registry.clock_found
        problem = None if found is None else found.problem
        if problem is not None and self._is_new(problem.task_id):
            self._tell(problem)

    def _is_new(self, alarm: str | None) -> bool:
        with self._lock:
            told, self._told = self._told, alarm
        return told != alarm


def keep(
    registry: Registry,
    name: str,
    tell: Callable[[SlotRun | IdemregError], None],
    watch: Callable[[], None],
    pause: Callable[[float], bool],
) -> None:
    """Look, and wait for the next slot, over and over. ``pause`` lets seconds pass, and says whether to stop.

    ``watch`` tells where the clock suspends scheduling, since nobody would hear of it by slots that do not run.

    An error of the store is told, and the next look tries again; so is a job's SystemExit. A schedule that another
    process has superseded ends. What is `FOR_GOOD` is raised.
    """
    cron = registry.schedules[name].table.cron
    while True:
        looked_s = registry.clock.wall_us() // 1_000_000
        try:
            cast("Recovery", registry.store).check_files()  # where nothing is due nothing is written, and none seen
            run_due(registry, (name,), tell)
            watch()
        except FOR_GOOD:
            raise
        except ScheduleError as error:
            tell(error)
            return
        except IdemregError as error:
            tell(error)
        except (SystemExit, KeyboardInterrupt) as error:  # of a job: in a thread, no signal raises these
            tell(_ended(name, error, registry.secrecy.error_detail))
        if _wait(registry, cron, looked_s, pause):
            return


def _ended(name: str, error: BaseException, detail: ErrorDetail) -> ScheduleError:
    what = describe(error, "type" if detail == "type" else "message")
    problem = ScheduleError(f"a job of {name} was ended by {what}", hint=f"`idemreg audit {name}` tells what ran.")
    problem.__cause__ = error
    return problem


def _wait(registry: Registry, cron: Cron, looked_s: int, pause: Callable[[float], bool]) -> bool:
    """Until the first slot after the last look, or until the clock is behind that one; whether to stop."""
    clock = registry.clock
    due_s = cron.following(looked_s, looked_s + LOOK_S) or looked_s + LOOK_S
    deadline = clock.monotonic() + LOOK_S
    while True:
        left_s = min(due_s - clock.wall_us() / 1_000_000, deadline - clock.monotonic())
        if pause(max(0.0, min(left_s, NAP_S))):
            return True
        if left_s <= NAP_S or clock.wall_us() // 1_000_000 < looked_s:  # what was skipped too early may come now
            return False
