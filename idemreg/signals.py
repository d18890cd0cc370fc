"""Signals on their way to commands: noted by handlers that raise nothing and wait for nothing, delivered once each.

A handler runs between any two steps of the main thread: in the middle of a claim, or inside Popen, behind the start of
a command that nobody knows of yet. One that raised there would leave a claim, or a command, without its owner; one that
took a lock would hang on a step that holds it. So handlers only note and deliver, and whoever may be ended asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["Inbox", "Interrupted", "Relay", "Signals"]

# Those that ask a program to do something. A terminal sends the first three to the whole foreground process group,
# the command included.
_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH)
_PASSED_ON: Final = (*_FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_TO_END_ALL: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SIGNAL_EXIT: Final = 128


class Interrupted(BaseException):
    """A signal asked to end before the command was started. Nothing ran."""


class Addressee(Protocol):
    """A command, as far as signals go."""

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""


class Inbox:
    """The signals for one command: kept until it is known, and then delivered, each once.

    `check` is for the time before: it raises what ``ending`` makes of the first signal that asked to end.
    """

    def __init__(self, ending: Callable[[int], BaseException]) -> None:
        self.asked: int | None = None
        self._ending = ending
        self._process: Addressee | None = None
        self._pending: deque[int] = deque()

    @property
    def runs(self) -> bool:
        """Whether its command is known, and has not ended."""
        return self._process is not None

    def check(self) -> None:
        """Raise where a signal asked to end."""
        if self.asked is not None:
            raise self._ending(self.asked)

    def send(self, number: int, *, is_told: bool = False) -> None:
        """Note a signal, and deliver it where the command is known. ``is_told``: a command that runs has it already."""
        if number != signal.SIGWINCH:
            self.asked = self.asked or number
        if self._process is None or not is_told:
            self._pending.append(number)
            self._deliver()

    def pass_to(self, process: Addressee) -> None:
        """From now on signals are this process's, those that were kept included."""
        self._process = process
        self._deliver()

    def ended(self) -> None:
        """The process has ended."""
        self._process = None

    def _deliver(self) -> None:
        # In a handler and in the thread of the command at once: `popleft` gives each signal to one of them.
        process = self._process
        while process is not None:
            try:
                number = self._pending.popleft()
            except IndexError:
                return
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


class _Handlers:
    """Handlers while it is entered, in the main thread; an ignored signal (nohup) stays ignored, for commands too.

    But for SIGCHLD: where it was left ignored, the kernel throws away the exit codes of our commands, and of theirs.
    """

    numbers: tuple[signal.Signals, ...]

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in self.numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
                self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        raise NotImplementedError


class Signals(_Handlers):
    """While it is entered, signals go to one command; before it is known, `Inbox.check` ends this process by them.

    A signal that the terminal sent has reached a command that runs already: it is in the same process group.
    """

    numbers = _PASSED_ON

    def __enter__(self) -> Inbox:
        self._inbox = Inbox(_ending)
        self._install()
        return self._inbox

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._inbox.send(number, is_told=_is_told(number))


class Relay(_Handlers):
    """Signals for many commands at once: the first that asks to end goes to all of them, and nothing new begins.

    A second one kills. The caller reads ``received`` and winds up.
    """

    numbers = _TO_END_ALL

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None
        self.is_repeated = False
        self.on_first: Callable[[], None] = _nothing  # both are called in the handler: they must take no lock
        self.on_second: Callable[[], None] = _nothing
        self._inboxes: set[Inbox] = set()

    def __enter__(self) -> Self:
        self._install()
        return self

    @property
    def runs(self) -> bool:
        """Whether any command does."""
        return any(inbox.runs for inbox in self._inboxes.copy())

    @contextlib.contextmanager
    def inbox(self) -> Iterator[Inbox]:
        """The inbox of one more command."""
        inbox = Inbox(lambda _: Interrupted())
        self._inboxes.add(inbox)
        inbox.asked = self.received  # behind the line above: what a handler sends now, it sends here as well
        try:
            yield inbox
        finally:
            self._inboxes.discard(inbox)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            is_told = _is_told(number)
            for inbox in list(self._inboxes):
                inbox.send(number, is_told=is_told)
            self.on_first()
        else:
            self.is_repeated = True
            for inbox in list(self._inboxes):
                inbox.send(signal.SIGKILL)
            self.on_second()


def _nothing() -> None:
    pass


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(SIGNAL_EXIT + number)


def _is_told(number: int) -> bool:
    """Whether the terminal sent it to the command as well. Nobody can know who sent it: its kind and place decide."""
    return number in _FROM_TERMINAL and _is_foreground()


def _is_foreground() -> bool:
    """Whether this process group is in the foreground of its terminal, which then tells the command as well."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
