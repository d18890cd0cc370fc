"""A word of a shared file on which processes sleep until it changes: Linux's futex.

A nap ends late: the kernel rounds its length up, and whoever naps guesses when what it waits for will have come. On two
busy processors half of each wait for a sync was overshoot. Here whoever has changed the word wakes all that sleep on
it, at once, in every process and container of the kernel.

It is a hint and nothing more. The word is a part of a note that means something by itself, and is written by ``pwrite``
and read by ``pread`` as before: at the mapping, which cannot be written through, only the kernel looks, so a file that
was cut short gives an error code and no SIGBUS. Each wait has a bound, since a process that is killed wakes nobody;
where there is no futex, a wait is a nap of that length.

The way there is `syscall(2)` by ctypes, since neither Python nor the C library has a function for it (futex(2)).
"""

from __future__ import annotations

import errno
import os
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from idemreg.clock import Clock
from idemreg.descriptors import opened

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Futex"]

# The number of the call, on machines of 64 bits: on others its times have another form.
NUMBERS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
WAIT: Final = 9  # FUTEX_WAIT_BITSET, in a form that also hears other processes
WAKE: Final = 10
CHANNELS: Final = 32
MASK: Final = 2**32 - 1
ALL: Final = 2**31 - 1
NS: Final = 1_000_000_000
PAGE_BYTES: Final = 4_096
PROT_READ: Final = 1  # of mmap(2), on all of these machines
MAP_SHARED: Final = 1

_NO_MAPPING: Final = frozenset({None, 2 ** (8 * struct.calcsize("P")) - 1})  # MAP_FAILED is -1

# It was woken, has changed before, the time is over, or a signal came.
_LOOK_AGAIN: Final = frozenset({0, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR})


class Futex:
    """The 32-bit word at ``offset`` in the first page of a file, which is open as ``fd``. Thread-safe.

    It opens the file by itself: a mapping keeps the open file in being that it was made of, and all locks with it.

    Whoever sleeps listens on a channel, a number of which the last five bits count; so those whose time has not come
    sleep on.
    """

    def __init__(self, path: str, fd: int, offset: int, clock: Clock) -> None:
        self._path, self._fd, self._offset = path, fd, offset
        self._clock = clock
        self._number = NUMBERS.get(os.uname().machine)
        self._mapped: dict[str, _Page] = {}  # by its path, once somebody has slept or woken

    def wait(self, value: int, channel: int, pause: float) -> None:
        """Sleep while the word is the low half of ``value``, for ``pause`` seconds at most; at times for less."""
        until = self._clock.monotonic() + pause
        # The kernel goes by the machine's clock. Ours may have been set by hand for a test, ahead of it or behind.
        code = self._call(WAIT, value & MASK, min(until, Clock.monotonic(self._clock) + pause), channel)
        is_early = code == errno.ETIMEDOUT and self._clock.monotonic() < until
        if is_early or code not in _LOOK_AGAIN:
            self._clock.sleep(pause)

    def wake(self, channel: int, most: int = ALL) -> None:
        """Wake all that listen on the channel, behind a change of the word; or so many of them."""
        self._call(WAKE, most, None, channel)

    def _call(self, order: int, value: int, until: float | None, channel: int) -> int:
        """0, or the number of an error."""
        if self._number is None:
            return errno.ENOSYS
        try:
            page = self._mapped.get(self._path) or self._map()
        except OSError:
            return errno.EBADF
        return page.call(self._number, order, value, until, channel)

    def _map(self) -> _Page:
        with opened(self._path, os.O_RDONLY) as fd:
            if not os.path.sameopenfile(fd, self._fd):  # another bears the name by now, in which nobody sleeps
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._path)
            mapped = _Page(fd, self._offset)
        # Of threads that come at once, and of a signal's handler that came in between, one has mapped it.
        page = self._mapped.setdefault(self._path, mapped)
        if page is not mapped:
            mapped.close()
        return page

    def close(self) -> None:
        """Unmap what was mapped."""
        for page in self._mapped.values():
            page.close()


class _Page:
    """The first page of the file, mapped, and the word in it."""

    def __init__(self, fd: int, offset: int) -> None:
        self._c, self._time_of, self._last_error = _library()
        self._offset = offset
        self._page = self._c.mmap(None, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0)

    def call(self, number: int, order: int, value: int, until: float | None, channel: int) -> int:
        """As `Futex._call`, by the kernel."""
        if self._page in _NO_MAPPING:
            return errno.ENODEV
        time = None if until is None else self._time_of(*divmod(round(until * NS), NS))
        address = self._page + self._offset
        answer = self._c.syscall(number, address, order, value, time, None, 1 << channel % CHANNELS)
        return self._last_error() if answer < 0 else 0

    def close(self) -> None:
        """Unmap it."""
        if self._page not in _NO_MAPPING:
            self._c.munmap(self._page, PAGE_BYTES)


@cache
def _library() -> tuple[Any, Callable[[int, int], Any], Callable[[], int]]:
    """The C library, a time as it takes it, and what its last error was. Once: that takes as long as a connection."""
    import ctypes  # noqa: PLC0415 - not before a file is opened

    class Time(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

    c = ctypes.CDLL(None, use_errno=True)
    pointer, uint32 = ctypes.c_void_p, ctypes.c_uint32
    # By the C library's own: Python tells the address of a mapping only where it can be written.
    c.mmap.argtypes = (pointer, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    c.mmap.restype = pointer
    c.munmap.argtypes = (pointer, ctypes.c_size_t)
    c.syscall.argtypes = (ctypes.c_long, pointer, ctypes.c_int, uint32, ctypes.POINTER(Time), pointer, uint32)
    c.syscall.restype = ctypes.c_long
    return c, Time, ctypes.get_errno
