"""Where the virtual machine is put under the real code: the few places at which it asks the system who and when.

Time is the registry's `Clock`; everything else here is a module's name that is exchanged once, for as many schedules as
are played; what stands there asks the machine of the schedule. None of it takes a barrier of the product away: a
record's process id is looked up in the machine's table in place of /proc, an owner's number comes from the seed, a sync
of the -wal is noted (on a memory file system there is nothing to sync), and where there is no futex the product naps,
as it does on machines that have none. Each virtual process has a heartbeat of its own, as each real one has.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any
from unittest import mock

from idemreg import faults, futex, heartbeat, limited, liveness
from idemreg.heartbeat import Heart
from idemreg.lockfile import LockFile
from idemreg.sqlite import files, opening, syncing
from tests.simulator.machine import DiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.simulator.machine import Machine, Process

__all__ = ["Seat", "installed"]


class _System:
    """The module `os`, but for what a test puts in its place."""

    def __init__(self, **instead: Any) -> None:
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class Seat:
    """Whichever machine is in place of the system."""

    def __init__(self) -> None:
        self._machine: Machine | None = None
        self._nobodys = Heart()  # of finalisers behind the last process
        self.synced: Callable[[], None] = _nothing

    def take(self, machine: Machine, synced: Callable[[], None]) -> None:
        """From now on it is this one; ``synced`` is called where the -wal would be synced."""
        self._machine, self.synced, self._nobodys = machine, synced, Heart()

    @property
    def machine(self) -> Machine:
        assert self._machine is not None
        return self._machine

    @property
    def running(self) -> Process:
        """Whoever of its processes runs."""
        running = self.machine.running
        assert running is not None
        return running

    def new_owner(self) -> int:
        """A number for an owner of whoever runs."""
        return self.machine.new_owner()

    @property
    def heart(self) -> Heart:
        """The heartbeat of whoever runs."""
        running = self.machine.running
        return self._nobodys if running is None else running.heart


class _Hearts:
    """The heartbeat of whoever runs, as the module has one of its process."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seat.heart, name)


@contextlib.contextmanager
def installed() -> Iterator[Seat]:
    """A seat in place of the system, for one machine after the other."""
    seat = Seat()

    class NotedLockFile(LockFile):
        def __init__(self, path: str) -> None:
            super().__init__(path)
            seat.running.lock_files.append(self)

        def note_database(self) -> None:
            super().note_database()
            if seat.running.adopts:  # its commit was synced by SQLite, and all before it
                seat.running.adopts = False
                seat.synced()

    def state_of(pid: int) -> Any:
        there = seat.machine.process_of(pid, seat.running.namespace)
        return None if there is None else liveness._ProcessState(is_dead=False, started=there.started)

    def namespace(kind: str) -> int:
        return seat.running.namespace if kind == "pid" else 1

    hearts = _Hearts(seat)
    with contextlib.ExitStack() as stack:
        for module, name, instead in (
            (liveness, "os", _System(getpid=lambda: seat.running.pid)),
            (liveness, "_process_state", state_of),
            (liveness, "_namespace", namespace),
            (liveness, "random_owner", seat.new_owner),
            (syncing, "os", _System(fdatasync=lambda _fd: seat.synced())),
            (opening, "LockFile", NotedLockFile),
            (files, "_mounts_on_the_way", lambda _path, _mounts: [("/", "tmpfs")]),
            (futex, "NUMBERS", {}),
            (limited, "heart", hearts),
            (heartbeat, "heart", hearts),
            (sys, "unraisablehook", _unraisable),
        ):
            stack.enter_context(mock.patch.object(module, name, instead))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", ResourceWarning)  # jobs that drop their claims
        stack.callback(faults.disarm)
        for point in faults.POINTS:
            faults.arm(point, lambda point=point: seat.machine.reach(point))  # type: ignore[misc]
        yield seat


def _nothing() -> None:
    """Nothing is synced yet."""


def _unraisable(problem: sys.UnraisableHookArgs) -> None:
    """A finaliser of a dead process finds itself dead."""
    if not isinstance(problem.exc_value, DiedError):
        sys.__unraisablehook__(problem)
