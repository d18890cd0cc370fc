"""What a command wrote: the end of it is kept, stored as its result, and read back."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["KEPT_BYTES", "READ_BYTES", "STDERR", "STDOUT", "Output", "StoredOutput", "stored_output"]

KEPT_BYTES: Final = 64 * 1_024
# Each piece costs some bytes of its own: this many always fit into a result, whatever the command writes.
KEPT_PIECES: Final = 4_096
READ_BYTES: Final = 64 * 1_024

STDOUT: Final = 1
STDERR: Final = 2


class Output:
    """The last 64 KiB that a command wrote, as pieces in the order in which they arrived on its two streams."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._pieces: list[tuple[int, bytes]] = []
        self._size = 0
        self.is_truncated = False

    def add(self, stream: int, data: bytes) -> None:
        """Keep what arrived, and let go of what is too old."""
        if self._pieces and self._pieces[-1][0] == stream and len(self._pieces[-1][1]) < READ_BYTES:
            self._pieces[-1] = (stream, self._pieces[-1][1] + data)
        else:
            self._pieces.append((stream, data))
        self._size += len(data)
        while self._size > self._limit or len(self._pieces) > KEPT_PIECES:
            oldest, kept = self._pieces[0]
            cut = min(len(kept), self._size - self._limit) if self._size > self._limit else len(kept)
            self._size -= cut
            self.is_truncated = True
            if cut == len(kept):
                del self._pieces[0]
            else:
                self._pieces[0] = (oldest, kept[cut:])

    def tail(self) -> bytes:
        """All that is kept, of both streams."""
        return b"".join(data for _, data in self._pieces)

    def kept(self) -> list[list[int | str | bytes]]:
        """The pieces as they are stored: the stream's number, and text where it is UTF-8."""
        return [[stream, _text_or_bytes(data)] for stream, data in self._pieces]


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class StoredOutput(NamedTuple):
    """The result of a command, as it was stored."""

    exit_code: int
    pieces: list[tuple[int, str | bytes]]
    is_truncated: bool


def stored_output(result: object) -> StoredOutput | None:
    """The stored result as a command's; None where it is another's: an operator's or a library call's."""
    match result:
        case {"exit_code": int(code), "output": list(pieces), "truncated": bool(cut), **rest} if not rest:
            is_output = all(
                isinstance(piece, list)
                and len(piece) == 2  # noqa: PLR2004 - stream and data
                and piece[0] in (STDOUT, STDERR)
                and isinstance(piece[1], str | bytes)
                for piece in pieces
            )
            if is_output and not isinstance(code, bool) and 0 <= code <= 255:  # noqa: PLR2004 - an exit code
                return StoredOutput(code, [(stream, data) for stream, data in pieces], cut)
    return None
