"""Events handed to a command, one after the other, in a thread of its own: no job waits for it, or fails by it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Final, Self

from idemreg.events import event_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType

    from idemreg.events import Event

__all__ = ["HANDLED_S", "MAX_WAITING", "Hand"]

HANDLED_S: Final = 60.0  # what one event may take; then the command is killed
MAX_WAITING: Final = 1_000  # events; those beyond are dropped, and told of

EVENT_VARIABLE: Final = "IDEMREG_EVENT"
# By these a command under `idemreg run` finds its claim, which ours must not take for its own.
_OF_A_CLAIM: Final = ("IDEMREG_TOKEN", "IDEMREG_CLAIM_DB", "IDEMREG_ATTEMPT", "IDEMREG_DOWNSTREAM_KEY", "IDEMREG_SLOT")


class Hand:
    """A callback for events that hands those of some names to a command; enter it first.

    The command finds the event as one object of JSON on its standard input, and its name and task in IDEMREG_EVENT and
    IDEMREG_TASK_ID. ``tell``: of a command that fails, hangs or cannot be started. Leaving waits for what is queued.
    What is queued when the process dies is handed to nobody.
    """

    def __init__(
        self,
        names: Collection[str],
        argv: Sequence[str],
        variables: Mapping[str, str],
        tell: Callable[[str], None],
        handled_s: float = HANDLED_S,
    ) -> None:
        self._names = frozenset(names)
        self._argv = list(argv)
        self._variables = dict(variables)
        self._tell = tell
        self._handled_s = handled_s
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._dropped = 0
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
        self._thread.join()

    def _hand_on(self) -> None:
        while (fields := self._queue.get()) is not None:
            problem = self._handle(fields)
            if problem is not None:
                self._tell(f"--on {fields['event']}: {self._argv[0]} {problem}")

    def _handle(self, fields: dict[str, Any]) -> str | None:
        """What is wrong with the command, or None."""
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_CLAIM}
        environment |= self._variables | {EVENT_VARIABLE: fields["event"]}
        environment["IDEMREG_TASK_ID"] = str(fields.get("task_id", ""))
        try:
            process = subprocess.Popen(  # noqa: S603 - running the caller's command is the purpose
                self._argv, stdin=subprocess.PIPE, env=environment, start_new_session=True
            )
        except (OSError, ValueError) as error:
            return f"cannot be started: {getattr(error, 'strerror', None) or error}"
        try:
            process.communicate(json.dumps(fields).encode() + b"\n", timeout=self._handled_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"took longer than {self._handled_s:g} s, and was killed"
        code = process.returncode
        return None if not code else f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
