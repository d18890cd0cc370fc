"""The loop of `idemreg watch`: sweep, and wait. It owns nothing: beside it, or after it, anybody else may sweep."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from idemreg.ends import message_of
from idemreg.sweeping import LEFT, RERUN

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.clock import Clock
    from idemreg.sweeping import Swept

__all__ = ["watch"]

# A sweep reads all tasks, for their table has no index on those that run. So it rests for so many times as long as it
# took: a file of millions of tasks is looked at less often, and never for more than a tenth of the time.
REST: Final = 9


def watch(
    sweep: Callable[[Callable[[Swept], None]], list[Swept]],
    tell: Callable[[Swept | Exception], None],
    interval_s: float,
    clock: Clock,
    pause: Callable[[float], bool],
) -> None:
    """Sweep, and wait for so many seconds, over and over. ``pause`` lets seconds pass, and says whether to stop.

    An error is told, and the next sweep tries again. What is left alone is told when it is first left. ``sweep`` is
    given what hears of each task at once. What cannot be told, since nobody reads it or its disk is full, ends the loop
    by its OSError; the task is swept all the same.
    """
    left: set[tuple[str, str]] = set()
    while True:
        began, swept = clock.monotonic(), []
        heard = _Heard(tell, left)
        try:
            swept = sweep(heard)
        except Exception as error:
            if error is heard.unheard:
                raise
            _tell(tell, error)
        left = heard.left
        took_s = 0.0 if any(one.did == RERUN for one in swept) else clock.monotonic() - began
        if pause(max(interval_s, REST * took_s)):
            return


class _Heard:
    """Tells of what is swept; of what is left only where the sweep before has not left it."""

    def __init__(self, tell: Callable[[Swept | Exception], None], left_before: set[tuple[str, str]]) -> None:
        self.left: set[tuple[str, str]] = set()
        self.unheard: OSError | None = None
        self._tell = tell
        self._left_before = left_before

    def __call__(self, one: Swept) -> None:
        if one.did == LEFT:
            left = one.task_id, "" if one.error is None else message_of(one.error)
            self.left.add(left)
            if left in self._left_before:
                return
        try:
            _tell(self._tell, one)
        except OSError as error:
            self.unheard = error
            raise


def _tell(tell: Callable[[Swept | Exception], None], what: Swept | Exception) -> None:
    """An error of telling is told in its place, so that no task's error ends the watch. An OSError is the stream's."""
    try:
        tell(what)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        with contextlib.suppress(ValueError, TypeError, RuntimeError):
            tell(error)
