"""The loop of `idemreg watch`: sweep, and wait. It owns nothing: beside it, or after it, anybody else may sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
    given what hears of each task at once.
    """
    left: set[tuple[str, str]] = set()
    while True:
        began, swept = clock.monotonic(), []
        heard = _Heard(tell, left)
        try:
            swept = sweep(heard)
        except Exception as error:  # noqa: BLE001 - whatever it is, who watches goes on
            tell(error)
        left = heard.left
        took_s = 0.0 if any(one.did == RERUN for one in swept) else clock.monotonic() - began
        if pause(max(interval_s, REST * took_s)):
            return


class _Heard:
    """Tells of what is swept; of what is left only where the sweep before has not left it."""

    def __init__(self, tell: Callable[[Swept | Exception], None], left_before: set[tuple[str, str]]) -> None:
        self.left: set[tuple[str, str]] = set()
        self._tell = tell
        self._left_before = left_before

    def __call__(self, one: Swept) -> None:
        if one.did == LEFT:
            left = one.task_id, str(one.error)
            self.left.add(left)
            if left in self._left_before:
                return
        self._tell(one)
