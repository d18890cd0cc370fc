"""A background thread that keeps the -wal short, so that no commit has to.

SQLite checkpoints inside whichever commit finds the -wal long enough: that commit pays for a thousand others. And a
checkpoint that never waits (PASSIVE) never finishes under steady commits, since the -wal can begin anew only at an
instant at which all of it is in the database and nobody reads it: it grows without end. So there are three tiers:

* PASSIVE, when enough pages wait to be moved. It keeps nobody waiting, and nearly always suffices.
* RESTART, when the -wal in use passes a size. It keeps writers out while it waits for readers, so it waits 50 ms at
  most, and where a reader defeats it, it leaves writers alone for a while.
* TRUNCATE, only by hand and when the checkpointer stops: a file that has to grow again makes each commit dearer.

Nothing polls. A commit of this process says how long the -wal is, which costs it a comparison, and rings when there is
something to do; a slow timer looks after what other processes wrote. Should the thread die or hang, the commits
themselves checkpoint once the -wal is long: it stays bounded without anybody's help.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final, Self

from idemreg.clock import seconds
from idemreg.errors import StoreError
from idemreg.sqlite.wal import Wal
from idemreg.untold import Untold

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from types import TracebackType

    from idemreg.registry import Registry
    from idemreg.sqlite.checkpoints import Checkpoint, Mode, WalState
    from idemreg.sqlite.readers import WalReader

__all__ = ["Checkpointer"]

# Pages that wait to be moved: SQLite's own measure, and 2 MB of pages of 2 KiB, which a slow disk takes in a moment.
PASSIVE_PAGES: Final = 1_000

# Bytes of the -wal in use. Four times what PASSIVE aims at: it was overtaken by commits, and will be again.
RESTART_BYTES: Final = 8 * 2**20

# Seconds that a RESTART or TRUNCATE waits for readers, and keeps writers out meanwhile: hardly felt by a person.
PATIENCE_S: Final = 0.05

# Seconds after a RESTART that a reader defeated. With the patience above, a reader that never ends costs writers 1 %.
RESTART_PAUSE_S: Final = 5.0

# Seconds between two looks at what other processes wrote. They checkpoint by themselves; this is for what a reader kept
# them from. A look takes less than a millisecond, so one a minute costs a battery nothing.
TIMER_S: Final = 60.0

# Pages at which a commit does it itself: the thread is dead, or a reader starves it. Far above what the thread keeps
# to, so that a thread which merely comes late finds its work undone; 32 MB of pages of 2 KiB.
NET_PAGES: Final = 16_000

# Seconds that `stop` waits for the thread: a checkpoint of its own to end, on a disk that is slow but not dead.
STOP_S: Final = 10.0


class Bell:
    """What commits tell the thread. Everything here is quick and never raises: it runs inside the commit."""

    def __init__(self, passive_pages: int, net_pages: int) -> None:
        self._passive_pages = passive_pages
        self._net_pages = net_pages
        self._rung = threading.Event()
        self.is_stopped = False
        self._pages = 0
        self.begin()

    def begin(self) -> None:
        """Forget for how long it was to rest: the -wal began anew, or its commits are told here again."""
        self._wake_at, self._net_at = self._passive_pages, self._net_pages

    def grown(self, pages: int) -> bool:
        """A commit has left so many pages in the -wal. True: it shall checkpoint by itself."""
        if pages < self._pages:  # the -wal began anew
            self.begin()
        self._pages = pages
        if pages >= self._wake_at:
            self._rung.set()
        if pages < self._net_at:
            return False
        self._net_at = pages + self._passive_pages  # not at every commit, while a reader makes it futile
        return True

    def rest(self, pages: int | None = None) -> None:
        """Ring no more before another so many pages have come on top of these (of the last known)."""
        self._wake_at = (self._pages if pages is None else pages) + self._passive_pages
        self._rung.clear()  # by commits that these pages are of; a ring that is lost here comes with the next commit
        if self.is_stopped:  # but for the last one
            self._rung.set()

    def wait(self, timer_s: float) -> bool:
        """Until it rings or the time is over; False when it is all over."""
        self._rung.wait(timer_s)
        self._rung.clear()
        return not self.is_stopped

    def ring(self) -> None:
        """Wake the thread now."""
        self._rung.set()

    def stop(self) -> None:
        """Wake the thread for the last time."""
        self.is_stopped = True
        self._rung.set()


class Checkpointer:
    """Keeps the -wal of a registry short, in a thread of its own.

        registry = Registry("jobs.db", checkpointer=True)       # as long as the file is open, in forked children too

        with Checkpointer(registry, on_checkpoint=print):       # for the block, in this process only
            ...

    Of several on one registry the one that was started last is rung by the commits, until it is closed.
    ``on_checkpoint`` gets each `Checkpoint`, in the thread; without one the registry's ``on_event`` does. What it
    raises goes to `threading.excepthook`, once as long as it stays the same, as do errors of a checkpoint itself;
    neither ends the thread.
    ``passive_pages``, ``restart_bytes``: from when on PASSIVE and RESTART are used. ``timer``: seconds or `timedelta`
    between looks at what other processes wrote.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        on_checkpoint: Callable[[Checkpoint], object] | None = None,
        passive_pages: int = PASSIVE_PAGES,
        restart_bytes: int = RESTART_BYTES,
        timer: float | timedelta = TIMER_S,
        in_children: bool = False,
    ) -> None:
        wal = getattr(getattr(registry, "store", None), "wal", None)
        if not isinstance(wal, Wal):
            msg = f"Checkpointer takes a Registry with a -wal (the `.registry` of an AsyncRegistry), not {registry!r}"
            raise TypeError(msg)
        for name, value in (("passive_pages", passive_pages), ("restart_bytes", restart_bytes)):
            if value < 1:
                msg = f"{name} takes one or more, not {value!r}"
                raise ValueError(msg)
        if on_checkpoint is None and registry.teller is not None:
            on_checkpoint = registry.teller.checkpointed
        self.on_checkpoint = on_checkpoint
        self._wal = wal
        self._clock = registry.clock
        self._passive_pages = passive_pages
        self._restart_bytes = restart_bytes
        self._timer_s = seconds(timer, what="timer")
        if not self._timer_s:
            msg = "timer takes more than no time: without a pause the thread would keep a processor busy"
            raise ValueError(msg)
        self._in_children = in_children
        self._reset()
        _checkpointers.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()  # over which thread is the thread
        self._stepping = threading.Lock()  # one step at a time, by the thread or by hand
        self._thread: threading.Thread | None = None
        self._bell = Bell(self._passive_pages, NET_PAGES)
        self._restarted_at: int | None = None  # pages in the -wal when a RESTART completed
        self._no_restart_before = float("-inf")
        self._seen: dict[int, float] = {}  # readers that starve it: process -> first seen, by the monotonic clock
        self._untold = Untold()

    # --- one step -----------------------------------------------------------------------------------------------

    def step(self) -> Checkpoint | None:
        """Look at the -wal, and checkpoint where that is due; None where it is not. The thread does nothing else.

        Never opens the file: a registry that is not open has nothing to checkpoint.
        """
        with self._stepping:
            if (state := self._wal.state()) is None:
                return None
            # Before the checkpoint, during which others commit: what they ring for is to come on top of what it sees.
            self._bell.rest(state.pages)
            mode = self._due(state)
            done = None if mode is None else self._checkpoint(mode)
        self._tell(done)
        return done

    def _due(self, state: WalState) -> Mode | None:
        # What a RESTART completed at still fills the -wal until the next commit begins it anew.
        is_restarted = self._restarted_at == state.pages == state.moved
        may_restart = not is_restarted and self._clock.monotonic() >= self._no_restart_before
        if may_restart and state.used_bytes >= self._restart_bytes:
            return "RESTART"
        return "PASSIVE" if state.pages - state.moved >= self._passive_pages else None

    def _checkpoint(self, mode: Mode) -> Checkpoint | None:
        if mode == "RESTART":
            # A RESTART keeps writers out for as long as it moves pages: let it find hardly any.
            self._wal.checkpoint_open("PASSIVE")
        if (done := self._wal.checkpoint_open(mode, busy_s=PATIENCE_S)) is None:
            return None  # closed since the look
        now = self._clock.monotonic()
        if done.busy:
            if mode == "RESTART":
                self._no_restart_before = now + RESTART_PAUSE_S
            return done._replace(readers=self._with_ages(done.readers, now))
        self._seen.clear()
        if mode == "RESTART":
            self._restarted_at = done.wal_pages
        return done

    def _with_ages(self, readers: tuple[WalReader, ...] | None, now: float) -> tuple[WalReader, ...] | None:
        """The readers, each with the time since which every look has found it."""
        if readers is None:
            return None
        self._seen = {reader.pid: self._seen.get(reader.pid, now) for reader in readers}
        return tuple(reader._replace(seen_s=now - self._seen[reader.pid]) for reader in readers)

    def _tell(self, done: Checkpoint | None) -> None:
        if done is not None and self.on_checkpoint is not None:
            self.on_checkpoint(done)

    # --- the thread ---------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the thread lives in this process."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def start(self) -> Self:
        """Take the checkpoints over from the commits, as soon as the registry is open and whenever it opens anew."""
        self._wal.watch(self._grown, self._run)
        return self

    def _grown(self, pages: int) -> bool:
        return self._bell.grown(pages)

    def _run(self) -> None:
        """Start the thread where none runs. Without one (the process ends, no more threads) the net of `Bell` holds."""
        with self._lock:
            if self.is_running or _ending.is_set():
                self._bell.begin()  # another one may have had the commits
                return
            self._bell = Bell(self._passive_pages, NET_PAGES)
            self._bell.ring()  # a look at what was there before
            # The thread must not keep alive what it serves: a registry that is dropped takes its thread along.
            args = (weakref.ref(self), self._bell, self._timer_s)
            thread = threading.Thread(target=_serve, args=args, name="idemreg-checkpointer", daemon=True)
            weakref.finalize(self, self._bell.stop).atexit = False
            _stop_at_exit()
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def step_safely(self) -> None:
        """A step whose errors are told and survived."""
        try:
            if self.step() is not None:
                self._untold.forget()
        except BaseException as error:  # noqa: BLE001 - whatever the disk or the callback has: the thread goes on
            self._bell.rest()
            self._untold.tell(error)

    def stop(self) -> None:
        """End the thread, and give the disk back what a reader has made the -wal grow beyond its working size.

        The thread starts again when the registry is opened anew. Safe to call in ``on_checkpoint``, and twice.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            self._bell.stop()
        if thread is None or thread is threading.current_thread():
            return
        thread.join(STOP_S)
        if thread.is_alive():
            return  # inside SQLite on a disk that hangs: a daemon, so the process can end
        with contextlib.suppress(StoreError), self._stepping:
            if self._wal.is_open and self._wal.file_bytes() > self._restart_bytes:
                done = self._wal.checkpoint_open("TRUNCATE", busy_s=PATIENCE_S)
                self._seen.clear()
                try:
                    self._tell(done)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - as in the thread
                    self._untold.tell(error)

    def close(self) -> None:
        """End the thread for good, and give the checkpoints back to SQLite."""
        self._wal.unwatch(self._grown)
        self.stop()

    def __enter__(self) -> Self:
        self._wal.open()
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forget(self) -> None:
        """In a forked child: the thread is the parent's, and a lock may be held by one that is not here."""
        self._reset()
        if not self._in_children:
            self._wal.forget(self._grown)


def _serve(reference: weakref.ref[Checkpointer], bell: Bell, timer_s: float) -> None:
    """The thread: waits without holding the checkpointer, which may be dropped meanwhile."""
    while bell.wait(timer_s):
        checkpointer = reference()
        if checkpointer is None:
            return
        checkpointer.step_safely()
        del checkpointer


# --- the end of the process, and fork ---------------------------------------------------------------------------

_checkpointers: weakref.WeakSet[Checkpointer] = weakref.WeakSet()
_ending = threading.Event()


@functools.cache
def _stop_at_exit() -> None:
    """Once, when the first thread is to start: the module that closes the files at the exit was imported before.

    What is registered last is called first, so the threads end before the files are closed.
    """
    atexit.register(_stop_all)


def _stop_all() -> None:
    """Before the interpreter goes: a daemon thread must not be inside SQLite while modules are torn down."""
    _ending.set()
    for checkpointer in list(_checkpointers):
        checkpointer.stop()


def _forget_all() -> None:
    for checkpointer in list(_checkpointers):
        checkpointer.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
