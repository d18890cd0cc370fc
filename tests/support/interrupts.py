"""An interrupt at each place at which CPython lets a signal's handler run, one after the other."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, ModuleType

P = ParamSpec("P")

# Called from C in the place of a trace function, so that no Python code comes between it and the code that is traced:
# the handler runs where that code itself looks for signals next. It takes no arguments, and ignores what it is given.
_trip = ctypes.PyDLL(None).PyErr_SetInterrupt
_trip.argtypes, _trip.restype = [ctypes.py_object] * 3, None

MOST_STEPS = 5_000


class Interrupter:
    """Raises `KeyboardInterrupt` once, behind a number of steps of the main thread within some modules."""

    def __init__(self, steps: int, *modules: ModuleType) -> None:
        self.has_raised = False
        self.has_come = False  # to whoever called: an error in a finaliser does not
        self.is_outside = False  # it was raised where the modules were left already
        self._left = steps
        self._files = {module.__file__ for module in modules}
        # Kept: CPython 3.11 goes on with what it traces by while the handler takes that away, and may find it freed.
        self._called, self._stepped = self._call, self._step

    def _call(self, frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = True
        return self._stepped

    def _step(self, frame: FrameType, _event: str, _argument: object) -> Callable[..., Any]:
        self._left -= 1
        if self._left > 0:
            return self._stepped
        caller = frame.f_back
        while caller is not None:  # Python code of ours at a return would look for signals where Python itself does not
            if caller.f_trace is not None:
                caller.f_trace = _trip
            caller = caller.f_back
        return _trip

    def _handle(self, _number: int, frame: FrameType | None) -> None:
        sys.settrace(None)
        if not self.has_raised:
            self.has_raised = True
            self.is_outside = frame is not None and frame.f_code.co_filename == __file__
            raise KeyboardInterrupt

    def carry_out(self, body: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Interrupt ``body``, and go on behind it."""
        before, traced_by = signal.signal(signal.SIGINT, self._handle), sys.gettrace()
        try:
            sys.settrace(self._called)
            body(*args, **kwargs)
            sys.settrace(None)  # an interrupt that the last step has asked for comes here
        except KeyboardInterrupt:
            assert self.has_raised
            self.has_come = True
        finally:
            sys.settrace(traced_by)  # coverage goes on with what comes behind
            signal.signal(signal.SIGINT, before)


def each_interrupt(*modules: ModuleType, first: int = 1, stride: int = 1) -> Iterator[Interrupter]:
    """One interrupter a step, or every so many steps, until one of them came to the end without an interrupt."""
    for steps in range(first, MOST_STEPS, stride):
        interrupter = Interrupter(steps, *modules)
        yield interrupter
        if not interrupter.has_raised:
            assert steps > 100, "nothing was traced"
            return
    msg = "there is no end of it"
    raise AssertionError(msg)
