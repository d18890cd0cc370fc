"""The files that a cut leaves, as real files in a folder in memory: built from the last ones, by what differs.

Most images differ from the one before in a few blocks, so only those are written, and only their hashes are computed.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from tests.powercut.disk import BLOCK, Write, block_hash, short_hash

if TYPE_CHECKING:
    from tests.powercut.cuts import Left
    from tests.powercut.disk import File, Op

__all__ = ["Content", "Folder", "contents", "hash_of_all", "hashes", "write_out"]


class Content(NamedTuple):
    """What one file holds: its durable blocks, but for those in ``blocks``."""

    file: File
    size: int
    blocks: dict[int, bytes]

    def block(self, index: int) -> bytes:
        """One block up to the file's end; zeros where nothing was written."""
        block = self.blocks.get(index)
        size = min(BLOCK, self.size - index * BLOCK)
        return (self.file.block(index) if block is None else block)[:size].ljust(size, b"\0")

    def read(self) -> bytes:
        """All of it."""
        return b"".join(map(self.block, range(-(-self.size // BLOCK))))


def contents(left: Left) -> dict[str, Content]:
    """What each file of a cut holds."""
    return {name: _content(file, ops) for name, (file, ops) in left.items()}


def _content(file: File, ops: list[Op]) -> Content:
    size = known = len(file.base)  # the durable bytes count up to `known`
    blocks: dict[int, bytearray] = {}
    for op in ops:
        if isinstance(op, Write):
            _write(file, known, blocks, op)
            size = max(size, op.at + len(op.data))
        else:
            if op.size < size:
                known = min(known, op.size)
                _cut(blocks, op.size)
            size = op.size
    for index in range(known // BLOCK, -(-min(size, len(file.base)) // BLOCK)):
        _block(file, known, blocks, index)
    return Content(file, size, {index: bytes(block) for index, block in blocks.items()})


def _block(file: File, known: int, blocks: dict[int, bytearray], index: int) -> bytearray:
    block = blocks.get(index)
    if block is None:
        first = index * BLOCK
        block = blocks[index] = bytearray(file.base[first : min(known, first + BLOCK)].ljust(BLOCK, b"\0"))
    return block


def _write(file: File, known: int, blocks: dict[int, bytearray], op: Write) -> None:
    at, data = op.at, op.data
    end = at + len(data)
    while at < end:
        index, offset = divmod(at, BLOCK)
        some = min(BLOCK - offset, end - at)
        _block(file, known, blocks, index)[offset : offset + some] = data[at - op.at : at - op.at + some]
        at += some


def _cut(blocks: dict[int, bytearray], size: int) -> None:
    """What was written beyond the new end is gone, also where the file grows again."""
    for index in [index for index in blocks if (index + 1) * BLOCK > size]:
        offset = max(size - index * BLOCK, 0)
        blocks[index][offset:] = bytes(BLOCK - offset)


def hashes(image: dict[str, Content]) -> dict[str, int]:
    """Of each file: the same for the same size and bytes, in every process."""
    return {name: _hash(*content) for name, content in image.items()}


def hash_of_all(parts: dict[str, int]) -> int:
    """Of an image, by those of its files: their names, sizes and bytes. 64 bits, the same in every process."""
    return hash(tuple(sorted((short_hash(name.encode()), part) for name, part in parts.items())))


def _hash(file: File, size: int, blocks: dict[int, bytes]) -> int:
    total = file.hash()
    for index, block in blocks.items():
        total += block_hash(index, block) - file.hash_of(index)
    # Durable blocks beyond the end of a file that was cut do not count.
    for index in range(-(-size // BLOCK), -(-len(file.base) // BLOCK)):
        if index not in blocks:
            total -= file.hash_of(index)
    return hash((size, total))


def write_out(image: dict[str, Content], folder: str) -> None:
    """Write the files of an image into a folder."""
    for name, content in image.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content.read())


class _Shown:
    """One file as it stands in the folder."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.file: File | None = None
        self.size = 0
        self.own: set[int] = set()  # the blocks that are not as in the durable file
        self.seen = 0  # how much of `File.changed` is written

    def show(self, content: Content) -> None:
        if content.file is not self.file:
            os.ftruncate(self.fd, 0)
            self.file, self.size, self.seen, self.own = content.file, 0, len(content.file.changed), set()
        stale = self.own.union(content.blocks, content.file.changed[self.seen :])
        self.seen = len(content.file.changed)
        if content.size < self.size:
            os.ftruncate(self.fd, content.size)
        elif content.size > self.size:
            stale.update(range(self.size // BLOCK, -(-min(content.size, len(content.file.base)) // BLOCK)))
        for index in stale:
            if index * BLOCK < content.size:
                os.pwrite(self.fd, content.block(index), index * BLOCK)
        if content.size > self.size:
            os.ftruncate(self.fd, content.size)
        self.size, self.own = content.size, set(content.blocks)

    def close(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class Folder:
    """A folder that shows one image after another."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._shown: dict[str, _Shown] = {}

    def show(self, image: dict[str, Content]) -> None:
        """Make the folder hold exactly this image."""
        for name in self._shown.keys() - image.keys():
            self._shown.pop(name).close()
        for name, content in image.items():
            shown = self._shown.get(name)
            if shown is None:
                shown = self._shown[name] = _Shown(os.path.join(self.path, name))
            shown.show(content)

    def forget(self) -> None:
        """Somebody changed the files: write them anew the next time."""
        while self._shown:
            self._shown.popitem()[1].close()
        for name in os.listdir(self.path):  # what SQLite has made
            os.unlink(os.path.join(self.path, name))
