"""Serial numbers: ids that never repeat and never go back, whatever the clock does.

    COUP-1K193SE6DHX00VFD4BY5R5V
         |          | |
         |          | instance: who gave it (10 characters)
         |          count within the microsecond (2)
         microseconds since the epoch (11), in Crockford's base 32, whose digits stand in the order of ASCII

Sorted as plain text they stand in the order in which a process gave them, over its restarts; those of several processes
in the order of their clocks. Each process has an instance of its own for a prefix, so no two give the same.

The time in them is that of the wall clock while it goes forward. Where it stands, goes back or cannot be believed, they
count on from the last. How far they may have come stands in the registry before they come there (see `Blocks`): some
seconds ahead, which a process that begins behind another begins with.
"""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Final, Self

from idemreg.errors import PrefixError

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.blocks import Block, Blocks
    from idemreg.clock import Clock
    from idemreg.offload import Offload

    Reserve = Callable[[int, int, Block | None], Block]

__all__ = ["AsyncSerials", "Serials", "check_prefix", "serials"]

# 8 and a dash leave 23 of 32 characters.
_PREFIX: Final = re.compile(r"[A-Za-z0-9_]{1,8}", re.ASCII)

# How far ahead of the clock a process reserves: little at first, for it may live no longer than a command does, and
# whoever comes behind it has to begin at the end of its block. A commit in ten seconds is nothing.
FIRST_AHEAD_US: Final = 100_000
MOST_AHEAD_US: Final = 10_000_000
GROWTH: Final = 10

DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LAST_COUNT: Final = 1_023
LOW_BITS: Final = 20  # of the microseconds: what is above changes once a second
LOW_MASK: Final = 2**LOW_BITS - 1
HIGH_CHARACTERS: Final = 7
INSTANCE_CHARACTERS: Final = 10

_PAIRS: Final = tuple(first + second for first in DIGITS for second in DIGITS)


def check_prefix(prefix: object) -> str:
    """The prefix; `PrefixError` where it is none."""
    if not isinstance(prefix, str) or _PREFIX.fullmatch(prefix) is None:
        msg = f"{prefix!r} is no prefix of serial numbers"
        raise PrefixError(msg)
    return prefix


class Serials:
    """The serial numbers of one prefix. Share it between threads; a forked child goes on under an instance of its own.

    Iterating never ends. A signal's handler may take one as well.
    """

    def __init__(self, line: _Line, store: Blocks, clock: Clock, *, durable: bool) -> None:
        self.prefix: Final = line.prefix
        self._line = line
        self._store = store
        self._wall_us = clock.wall_us
        self._durable = durable

    def next(self) -> str:
        """The next serial number.

        One in thousands, or in ten seconds, waits for a commit, and raises what that may raise (`StoreBusyError`, ...);
        then no number is lost by it but its own.
        """
        now_us, line = self._wall_us(), self._line
        with line.lock:
            return line.held(now_us, durable=self._durable) or line.reserved(
                now_us, self._reserve, durable=self._durable
            )

    def next_held(self) -> str | None:
        """The next one where it costs no commit, and no wait for another thread's; None otherwise."""
        now_us, line = self._wall_us(), self._line
        if not line.lock.acquire(blocking=False):
            return None
        try:
            return line.held(now_us, durable=self._durable)
        finally:
            line.lock.release()

    def _reserve(self, now_us: int, ahead_us: int, held: Block | None) -> Block:
        return self._store.reserve_serials(self.prefix, now_us, ahead_us, held, durable=self._durable)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return self.next()

    def __repr__(self) -> str:
        return f"Serials({self.prefix!r})"


class AsyncSerials:
    """As `Serials`, awaited: only what waits for a commit goes to a thread."""

    def __init__(self, serials: Serials, offload: Offload) -> None:
        self.prefix: Final = serials.prefix
        self._serials = serials
        self._offload = offload

    async def next(self) -> str:
        """The next serial number; see `Serials.next`. One that a cancelled caller did not get is not given again."""
        found = self._serials.next_held()
        return str(await self._offload.call(self._serials.next)) if found is None else found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await self.next()

    def __repr__(self) -> str:
        return f"AsyncSerials({self.prefix!r})"


def serials(store: Blocks, path: str, prefix: str, clock: Clock, *, durable: bool) -> Serials:
    """The serial numbers of a prefix in the file at ``path``; all of one process come from one line."""
    key = os.path.realpath(path), check_prefix(prefix)
    return Serials(_lines.setdefault(key, _Line(prefix)), store, clock, durable=durable)


class _Line:
    """Where a process stands with a prefix. ``lock`` is held around everything.

    It lets its own thread in again, so that a signal's handler which takes a number in the middle of taking one does
    not wait for itself. Therefore no call stands between a look at where the line is and its step ahead: Python lets a
    handler run at calls only.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.renew()

    def renew(self) -> None:
        """Begin under another instance. In a forked child the lock may be held by a thread that is not there."""
        self.lock = threading.RLock()
        self._us, self._count = -1, LAST_COUNT  # the last that was given, as it were
        self._until_us = [0, 0]  # the end of the block: however it is stored, and where it is durable
        self._block: Block | None = None
        self._ahead_us = FIRST_AHEAD_US
        self._tail = ""
        self._high, self._head = -1, ""

    def held(self, now_us: int, *, durable: bool) -> str | None:
        """The next number of the block; None where another block is to be reserved, or the clock is beyond this one."""
        if self._us < now_us < self._until_us[durable]:
            self._us = us = now_us
            self._count = count = 0
        elif now_us <= self._us < self._until_us[durable] and self._count < LAST_COUNT:
            us = self._us
            self._count = count = self._count + 1
        else:
            return None
        return self._text(us, count)

    def reserved(self, now_us: int, reserve: Reserve, *, durable: bool) -> str:
        """The next number, of a new block where the one there is does not reach."""
        while True:
            block = self._block
            if block is not None and now_us >= block.ceiling_us:
                now_us = 0  # it is not believed: count on
            us = self._us + 1
            us = max(now_us, us)
            if self._us < us < self._until_us[durable]:
                self._us = us
                self._count = 0
                return self._text(us, 0)
            held = None if block is None else block._replace(begin_us=us)
            self._note(reserve(now_us, self._ahead_us, held), durable=durable)

    def _note(self, block: Block, *, durable: bool) -> None:
        """From now on the block may be given, from its beginning. Its end comes last: an interrupt may come before."""
        pairs = [_PAIRS[block.instance >> at & 1_023] for at in (40, 30, 20, 10, 0)]
        self._tail = "".join(pairs)
        self._block = block
        if self._us < block.begin_us - 1:
            self._us = block.begin_us - 1
            self._count = LAST_COUNT
        self._until_us = [block.until_us, block.until_us if durable else self._until_us[True]]
        self._ahead_us = min(self._ahead_us * GROWTH, MOST_AHEAD_US)

    def _text(self, us: int, count: int) -> str:
        high, low = us >> LOW_BITS, us & LOW_MASK
        if high != self._high:
            self._head = f"{self.prefix}-" + "".join(DIGITS[high >> at & 31] for at in range(30, -1, -5))
            self._high = high
        return f"{self._head}{_PAIRS[low >> 10]}{_PAIRS[low & 1_023]}{_PAIRS[count]}{self._tail}"


# Of each registry's path and prefix, for the life of the process: a prefix is a constant of the program.
_lines: Final[dict[tuple[str, str], _Line]] = {}


def _renew_all() -> None:
    for line in list(_lines.values()):
        line.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
