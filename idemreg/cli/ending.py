"""How `schedule`, `watch` and `each` end by a signal: the first behind what runs, which they say; a second at once."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from idemreg.output import STDERR

if TYPE_CHECKING:
    from idemreg.handing import Hand
    from idemreg.scheduler import Loops
    from idemreg.signals import Relay

__all__ = ["SAID", "SIGNAL", "die", "end_behind", "relay_in", "say"]

SIGNAL: Final = 128  # and its number: an end that a signal asked for
SAID: Final = b"idemreg: ending as soon as what runs now is done; a second signal kills\n"


def relay_in(stack: contextlib.ExitStack) -> Relay:
    """What has the signals, as long as the stack is not left."""
    from idemreg.signals import Relay  # noqa: PLC0415 - the help text needs none of it

    relay = stack.enter_context(Relay())

    relay.on_second = lambda: die(relay)
    return relay


def die(relay: Relay, hand: Hand | None = None) -> None:
    """By the signal that asked to end first, and not before what was handed an event."""
    number = relay.received or signal.SIGKILL
    signal.signal(number, signal.SIG_DFL)

    def kill() -> None:
        os.kill(os.getpid(), number)

    if hand is None:
        kill()
    else:
        hand.kill(kill)


def end_behind(relay: Relay, loops: Loops) -> None:
    """Have the first signal stop the loops. Where what runs goes on for a moment, that is said."""
    said: list[bool] = []

    def waits() -> None:
        if relay.received is not None and not said:  # an error stops them as well
            said.append(True)
            say()

    loops.on_wait = waits
    relay.on_first = loops.stop
    if relay.received is not None:  # before the line above
        loops.stop()


def say() -> None:
    """Tell who asked to end why it goes on. May be called in a handler: so by no stream, which has a lock."""
    with contextlib.suppress(OSError):
        os.write(STDERR, SAID)
