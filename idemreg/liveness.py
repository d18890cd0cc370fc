"""Whether an owner lives: yes, no, or cannot tell. Only a proof of death permits a takeover.

The proof is the owner's byte in the lock file: the kernel frees it when the owner dies, and not before. It has a
second condition, since a live process can lose its lock (``os.closerange``, a descriptor closed by mistake): the
process must not be there any more, where this process can see that at all.

    the byte is held                                             -> alive
    the record is of another boot                                -> dead
    the record's lock file is not this one, or is not at its path
    any more, or locks do nothing on this file system, or could
    not be tried                                                 -> cannot tell
    the byte is free, the process is still there (same process
    id namespace; same start time; no zombie)                    -> cannot tell
    the byte is free                                             -> dead

A process id alone never proves anything: in two containers both owners are process 1, a zombie still has its number,
and 190 of 200 forced reuses of a process id had the same start time (which only errs to the safe side here).
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import os
import sys
from functools import lru_cache
from typing import NamedTuple, Self

from idemreg import oslock
from idemreg.clock import Clock
from idemreg.errors import StoreError
from idemreg.lockfile import LockFile, owner_byte, random_owner
from idemreg.model import Liveness

__all__ = ["Examiner", "OwnerRecord"]

COMMAND_CHARACTERS = 120  # of the program's name, for people
_START_TIME_FIELD = 19  # of /proc/PID/stat, counted from the state behind the last parenthesis
_STATE_FIELD = 0
_DEAD_STATES = frozenset({"Z", "X", "x"})


class OwnerRecord(NamedTuple):
    """What a stranger needs to take a second look at an owner. Stored beside its first claim."""

    id: int
    lock_id: str
    boot_id: str
    pid: int
    pid_ns: int
    time_ns: int
    started: int
    host: str
    command: str
    notes_at: int | None = None  # of a batch; see schema.sql
    notes: int | None = None
    claims: int | None = None

    def of_child(self, pid: int) -> Self:
        """The same owner, in a process that this one has started."""
        state = _process_state(pid)
        return self._replace(pid=pid, started=0 if state is None else state.started, command=_command_of(pid))

    @classmethod
    def of_this_process(cls, lock_id: str, clock: Clock) -> Self:
        """A record of the calling process under a new owner number."""
        pid = os.getpid()
        state = _process_state(pid)
        return cls(
            id=random_owner(),
            lock_id=lock_id,
            boot_id=clock.boot_id(),
            pid=pid,
            pid_ns=_namespace("pid"),
            time_ns=_namespace("time"),
            started=0 if state is None else state.started,
            host=os.uname().nodename,
            command=_command_of_this_process(),
        )


class Examiner:
    """Tells whether owners live, by the locks of one lock file, for one process."""

    def __init__(self, lock_file: LockFile, clock: Clock) -> None:
        self._lock_file = lock_file
        self._boot_id = clock.boot_id()
        self._pid_ns = _namespace("pid")
        self._time_ns = _namespace("time")
        self.untried = ""  # why the locks could not be tried, if the last test of them has failed so
        self._locks_proven = self._try_locks()  # now, while this process surely may open the file

    @property
    def locks_work(self) -> bool:
        """Whether locks mean anything here. ``untried`` tells locks that do nothing from those of whom nobody knows.

        Only a proof is remembered: what has kept the test from one (no descriptor left, an error of the disk) may be
        over when the next owner is looked at.
        """
        if not self._locks_proven:
            self._locks_proven = self._try_locks()
        return self._locks_proven

    def _try_locks(self) -> bool:
        self.untried = ""
        try:
            return oslock.SUPPORTED and any(
                # Three tries: a fork of another thread in mid-test inherits the lock and makes one try fail.
                oslock.self_test(self._lock_file.path, owner_byte(random_owner()))
                for _ in range(3)
            )
        except (OSError, StoreError) as error:
            said = error.message if isinstance(error, StoreError) else error.strerror
            self.untried = f"the locks could not be tried: {said}"
            return False

    def has_entered(self, record: OwnerRecord | None, note: int | None) -> bool:
        """Whether a dead owner has entered the job of a claim. Yes unless a note that can be trusted says no."""
        if record is None or record.notes_at is None or note is None:
            return True
        if (record.boot_id, record.lock_id) != (self._boot_id, self._lock_file.lock_id):
            return True
        return self._lock_file.read_note(record.notes_at + note)

    def examine(self, owner: int, record: OwnerRecord | None) -> tuple[Liveness, str]:
        """Whether the owner lives, and the reason in words.

        ``record`` is None where it was removed: by the owner itself with no claim left, or by proof of its death. So
        a missing record adds nothing, and the lock alone speaks.
        """
        if not self.locks_work:
            return self._without_locks(record)
        if oslock.is_held(self._lock_file.fd, owner_byte(owner)):
            return Liveness.ALIVE, "its lock is held"
        if record is not None and record.boot_id != self._boot_id:
            return Liveness.DEAD, "the machine was restarted since"
        try:
            is_at_path = self._lock_file.is_at_path()
        except OSError as error:
            return Liveness.CANNOT_TELL, f"the lock file cannot be looked at: {error.strerror}"
        if not is_at_path:
            return Liveness.CANNOT_TELL, "the lock file was deleted or replaced under this process"
        if record is None:
            return Liveness.DEAD, "its lock is free"
        if record.lock_id != self._lock_file.lock_id:
            return Liveness.CANNOT_TELL, "its lock was in a lock file that is gone"
        if self._still_there(record):
            return Liveness.CANNOT_TELL, f"its lock is free, but its process {record.pid} is still there"
        return Liveness.DEAD, "its lock is free and its process is gone"

    def _without_locks(self, record: OwnerRecord | None) -> tuple[Liveness, str]:
        if record is not None and record.boot_id != self._boot_id:
            return Liveness.DEAD, "the machine was restarted since"
        return Liveness.CANNOT_TELL, self.untried or "locks do nothing on this file system"

    def _still_there(self, record: OwnerRecord) -> bool:
        if record.pid_ns != self._pid_ns or not record.pid_ns:
            return False  # its number means nothing here; the lock has spoken
        state = _process_state(record.pid)
        if state is None or state.is_dead:
            return False
        # A time namespace shifts the start times that its members read: across two of them every process with that
        # number counts as the same one.
        same_clock = record.time_ns == self._time_ns and record.started and state.started
        return not same_clock or state.started == record.started


class _ProcessState(NamedTuple):
    is_dead: bool
    started: int


def _process_state(pid: int) -> _ProcessState | None:
    """State and start time of a process, or None where there is none."""
    if not _proc_is_ours(_namespace("pid")):
        return _probe_by_signal(pid)
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return _probe_by_signal(pid)
    # The command stands in parentheses and may hold spaces and parentheses itself: read from behind the last.
    fields = text[text.rindex(")") + 2 :].split()
    return _ProcessState(fields[_STATE_FIELD] in _DEAD_STATES, int(fields[_START_TIME_FIELD]))


@lru_cache(maxsize=1)  # by the namespace: a forked child may be in another than its parent
def _proc_is_ours(_pid_ns: int) -> bool:
    """Whether /proc shows the processes of this pid namespace, and not those of the one around it.

    `unshare --pid` without a new /proc leaves the old one, in which our numbers belong to strangers.
    """
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            numbers = next((line.split()[1:] for line in file if line.startswith("NSpid:")), ["alone"])
    except OSError:
        return False
    return len(numbers) == 1  # one a namespace, from that of /proc inwards


def _probe_by_signal(pid: int) -> _ProcessState | None:
    """Without a /proc of ours, signal 0 tells whether the process id is in use; its start time stays unknown."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return _ProcessState(is_dead=False, started=0)


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


# Only names of programs are stored, never their arguments, which may hold secrets.


def _command_of_this_process() -> str:
    program = _printable(os.path.basename(sys.executable) or "python")
    script = sys.argv[0] if sys.argv else ""
    if script in ("", "-c", "-m"):
        return program
    name = os.path.basename(script)
    if name == "__main__.py":
        return f"{program} -m {_printable(os.path.basename(os.path.dirname(script)))}"
    return _printable(name)


def _command_of(pid: int) -> str:
    if not _proc_is_ours(_namespace("pid")):
        return ""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return _printable(os.path.basename(os.fsdecode(file.read(4_096).partition(b"\0")[0])))
    except OSError:
        return ""


def _printable(name: str) -> str:
    return " ".join(os.fsencode(name).decode("utf-8", "replace").split())[:COMMAND_CHARACTERS]
