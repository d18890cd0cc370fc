"""Events handed to a command, one after the other, in a thread of its own: no job waits for it, or fails by it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Final, Self

from idemreg.claim_environment import TASK_ID_VARIABLE, of_no_claim
from idemreg.clock import Clock
from idemreg.counted import counted
from idemreg.errors import CommandNotExecutableError, CommandNotFoundError
from idemreg.events import event_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType

    from idemreg.events import Event

__all__ = ["HANDLED_S", "MAX_WAITING", "Hand", "check_command"]

HANDLED_S: Final = 60.0  # what one event may take; then the command is killed
MAX_WAITING: Final = 1_000  # events; those beyond are dropped, and told of
LOOK_S: Final = 0.5  # how soon who leaves sees that it shall hurry

EVENT_VARIABLE: Final = "IDEMREG_EVENT"


class Hand:
    """A callback for events that hands those of some names to a command; enter it first.

    The command finds the event as one object of JSON on its standard input, and its name and task in IDEMREG_EVENT and
    IDEMREG_TASK_ID. ``tell``: of a command that fails, hangs or cannot be started, and of events that nobody got.
    Leaving waits for what is queued; once ``is_hurried`` says so, for no longer than one event may take. What is queued
    when the process dies is handed to nobody.
    """

    def __init__(
        self,
        names: Collection[str],
        argv: Sequence[str],
        variables: Mapping[str, str],
        tell: Callable[[str], None],
        handled_s: float = HANDLED_S,
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._names = frozenset(names)
        self._argv = list(argv)
        self._variables = dict(variables)
        self._tell = tell
        self._handled_s = handled_s
        self._is_hurried = is_hurried
        self._clock = Clock()
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._dropped = 0
        self._ends_at: float | None = None  # monotonic: from then on nothing is handed
        self._process: subprocess.Popen[bytes] | None = None
        self._is_starting = False
        self._after_kill: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._hand_on, name="idemreg --on", daemon=True)

    def __call__(self, event: Event) -> None:
        """Queue it; waits for nothing."""
        fields = event_fields(event)
        if fields["event"] not in self._names:
            return
        if self._queue.qsize() >= MAX_WAITING:
            self._dropped += 1
            if self._dropped == 1:
                self._tell(f"{MAX_WAITING:,} events wait for their command; those behind them are dropped")
            return
        self._queue.put(fields)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        while self._thread.is_alive():
            if self._ends_at is None and self._is_hurried():
                self._ends_at = self._clock.monotonic() + self._handled_s
            self._thread.join(LOOK_S)  # not for ever: see `Loops.run`

    def kill(self, then: Callable[[], None]) -> None:
        """Kill the command that runs, start none any more, and call ``then``. For a handler of a signal: it waits not.

        A command that is being started cannot be killed yet: then its thread does both.
        """
        self._after_kill = then  # before the look: who starts one looks here behind it, and before it
        process = self._process
        if process is not None:
            _kill(process)
        if not self._is_starting:
            then()

    def _hand_on(self) -> None:
        lost = 0
        while (fields := self._queue.get()) is not None:
            if (left_s := self._left_s()) <= 0:
                lost += 1
                continue
            problem = self._handle(fields, left_s)
            if problem is not None:
                self._tell(f"--on {fields['event']}: {self._argv[0]} {problem}")
        if lost + self._dropped:
            self._tell(f"--on: {counted(lost + self._dropped, 'event')} dropped, which nobody was handed")

    def _left_s(self) -> float:
        return self._handled_s if self._ends_at is None else self._ends_at - self._clock.monotonic()

    def _handle(self, fields: dict[str, Any], handled_s: float) -> str | None:
        """What is wrong with the command, or None."""
        environment = of_no_claim() | self._variables
        environment |= {EVENT_VARIABLE: fields["event"], TASK_ID_VARIABLE: str(fields.get("task_id", ""))}
        try:
            process = self._start(environment)
        except (OSError, ValueError) as error:
            return f"cannot be started: {getattr(error, 'strerror', None) or error}"
        try:
            process.communicate(json.dumps(fields).encode() + b"\n", timeout=handled_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
            return f"took longer than {handled_s:.3g} s, and was killed"
        finally:
            self._process = None
        code = process.returncode
        return None if not code else f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _start(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        self._is_starting = True
        try:
            if self._after_kill is not None:
                msg = "this process is being killed"
                raise ValueError(msg)
            self._process = process = subprocess.Popen(  # noqa: S603 - running the caller's command is the purpose
                self._argv, stdin=subprocess.PIPE, env=environment, start_new_session=True
            )
        finally:
            self._is_starting = False
            if self._after_kill is not None:
                self._killed(self._after_kill)
        return process

    def _killed(self, then: Callable[[], None]) -> None:
        if self._process is not None:
            _kill(self._process)
        then()


def check_command(command: str) -> None:
    """`CommandNotFoundError` or `CommandNotExecutableError` now, and not at the first event, which it would lose."""
    if shutil.which(command) is not None:
        return
    if os.sep in command and os.path.lexists(command):
        msg = f"cannot execute {command}"
        raise CommandNotExecutableError(msg)
    msg = f"no such command: {command}"
    raise CommandNotFoundError(msg)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """It, and what it started in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
