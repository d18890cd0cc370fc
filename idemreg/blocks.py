"""What a store must do for serial numbers: blocks of them, reserved ahead, so that the usual one costs no commit.

A serial is (microsecond, count, instance). A block is all counts of a run of microseconds under one instance. The mark
of a prefix is the end of the farthest block; whoever opens it next begins there, so a clock that was set back, or a
process that died, brings nothing back.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

__all__ = ["INSTANCE_BITS", "MICROSECOND_BITS", "Block", "Blocks"]

MICROSECOND_BITS: Final = 55  # since the epoch: until the year 3111
INSTANCE_BITS: Final = 50


class Block(NamedTuple):
    """Serials that one opener of a prefix may give: from ``begin_us``, below ``until_us``, under its ``instance``.

    ``ceiling_us``: a wall clock that says this or more is not believed, and serials count on without it.
    """

    instance: int
    begin_us: int
    until_us: int
    ceiling_us: int


class Blocks(Protocol):
    """The half of a `Store` that `idemreg.serials` stands on."""

    def reserve_serials(self, prefix: str, now_us: int, ahead_us: int, held: Block | None, *, durable: bool) -> Block:
        """Raise the prefix's mark past a new block, which nobody was given before, and give the block.

        It lasts until the wall clock has gone ``ahead_us`` beyond ``now_us``, and some thousands of serials at least.
        ``held``: the block of the same opener that is used up below its ``begin_us``; None: a new opener, which gets an
        instance of its own. With ``durable`` the mark is on the disk when this returns.
        """
