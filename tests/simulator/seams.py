"""Where the virtual machine is put under the real code: the few places at which it asks the system who and when.

Time is the registry's `Clock`; everything else here is a module's name that is exchanged while a schedule runs. None of
it takes a barrier of the product away: a record's process id is looked up in the machine's table in place of /proc, an
owner's number comes from the seed, a sync of the -wal is noted (on a memory file system there is nothing to sync), and
where there is no futex the product naps, as it does on machines that have none. Each virtual process has a heartbeat of
its own, as each real one has.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any
from unittest import mock

from idemreg import faults, futex, heartbeat, limited, liveness
from idemreg.lockfile import LockFile
from idemreg.sqlite import files, opening, syncing
from tests.simulator.machine import DiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.simulator.machine import Machine, Process

__all__ = ["installed"]


class _System:
    """The module `os`, but for what a test puts in its place."""

    def __init__(self, **instead: Any) -> None:
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class _Hearts:
    """The heartbeat of whoever runs."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._nobodys = heartbeat.Heart()  # of finalisers behind the last process

    def __getattr__(self, name: str) -> Any:
        running = self._machine.running
        return getattr(self._nobodys if running is None else running.heart, name)


@contextlib.contextmanager
def installed(machine: Machine, synced: Callable[[], None]) -> Iterator[None]:
    """The machine in place of the system; ``synced`` is called where the -wal would be synced."""

    def running() -> Process:
        assert machine.running is not None
        return machine.running

    class NotedLockFile(LockFile):
        def __init__(self, path: str) -> None:
            super().__init__(path)
            running().lock_files.append(self)

        def note_database(self) -> None:
            super().note_database()
            if running().adopts:  # its commit was synced by SQLite, and all before it
                running().adopts = False
                synced()

    def state_of(pid: int) -> Any:
        there = machine.process_of(pid, running().namespace)
        return None if there is None else liveness._ProcessState(is_dead=False, started=there.started)

    def namespace(kind: str) -> int:
        return running().namespace if kind == "pid" else 1

    hearts = _Hearts(machine)
    with contextlib.ExitStack() as stack:
        for module, name, instead in (
            (liveness, "os", _System(getpid=lambda: running().pid)),
            (liveness, "_process_state", state_of),
            (liveness, "_namespace", namespace),
            (liveness, "random_owner", machine.new_owner),
            (syncing, "os", _System(fdatasync=lambda _fd: synced())),
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
            faults.arm(point, lambda point=point: machine.reach(point))  # type: ignore[misc]
        yield


def _unraisable(problem: sys.UnraisableHookArgs) -> None:
    """A finaliser of a dead process finds itself dead."""
    if not isinstance(problem.exc_value, DiedError):
        sys.__unraisablehook__(problem)
