"""The ways in which a cut may go: which of the pending changes are on the disk, and which are not.

A way is a function of the disk and a source of chance; it gives the names that are there, and for each file what was
kept of its pending changes. `WAYS` lists them; each cut is tried in all of them, those of chance anew at every cut.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tests.powercut.disk import Resize, Write, apply_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from tests.powercut.disk import Disk, File, Name, Op

    Left = dict[str, tuple[File, list[Op]]]  # what a cut leaves: by name, the durable file and what was kept on top
    Way = Callable[[Disk, Random], Left]

__all__ = ["WAYS", "Left"]

SECTOR: Final = 512  # bytes; what a disk writes whole or not at all


def lost(disk: Disk, chance: Random) -> Left:
    """All that was not synced is gone."""
    return {name: (file, []) for name, file in disk.names.items()}


def kept(disk: Disk, chance: Random) -> Left:
    """All of it is there: as if the processes had been killed."""
    return {name: (file, file.unsure()) for name, file in _names(disk, disk.pending).items()}


def subset(disk: Disk, chance: Random) -> Left:
    """Any of it, whatever the order."""
    share = chance.random()
    names = _names(disk, (change for change in disk.pending if chance.random() < share))
    return {name: (file, _some(file.unsure(), share, chance)) for name, file in names.items()}


def torn(disk: Disk, chance: Random) -> Left:
    """Of each write, any of its sectors."""
    share = chance.random()
    names = _names(disk, disk.pending[: chance.randint(0, len(disk.pending))])
    return {
        name: (file, [part for op in file.unsure() for part in _some(_sectors(op), share, chance)])
        for name, file in names.items()
    }


def sizes(disk: Disk, chance: Random) -> Left:
    """The files have their new sizes, and zeros where the data should be."""
    return {
        name: (file, [_size_alone(op) for op in file.unsure()]) for name, file in _names(disk, disk.pending).items()
    }


def unsized(disk: Disk, chance: Random) -> Left:
    """The data is there, but only up to the files' old sizes."""
    return {
        name: (file, [part for op in file.unsure() for part in _within(op, len(file.base))])
        for name, file in _names(disk, disk.pending).items()
    }


def prefix(disk: Disk, chance: Random) -> Left:
    """Whatever came before some moment, over all files."""
    names = _names(disk, disk.pending)
    numbers = sorted({change.number for change in disk.pending} | {op.number for op in _ops(names.values())})
    last = chance.choice(numbers) if numbers else 0
    names = _names(disk, (change for change in disk.pending if change.number <= last))
    return {name: (file, [op for op in file.unsure() if op.number <= last]) for name, file in names.items()}


def last_alone(disk: Disk, chance: Random) -> Left:
    """Only the newest few changes: they overtook all others."""
    names = _names(disk, disk.pending)
    numbers = sorted(op.number for op in _ops(names.values()))[-chance.randint(1, 3) :]
    first = numbers[0] if numbers else 0
    return {name: (file, [op for op in file.unsure() if op.number >= first]) for name, file in names.items()}


def one_lost(disk: Disk, chance: Random) -> Left:
    """One file has lost all, the others nothing: the database without its -wal, or the other way round."""
    names = _names(disk, disk.pending)
    unlucky = chance.choice(sorted(names)) if names else ""
    return {name: (file, [] if name == unlucky else file.unsure()) for name, file in names.items()}


def old_names(disk: Disk, chance: Random) -> Left:
    """All data, under the names of before: what was unlinked is back, what is new has no name."""
    return {name: (file, file.unsure()) for name, file in disk.names.items()}


# By name, the two that find most first.
WAYS: Final[dict[str, Way]] = {
    way.__name__: way for way in (lost, kept, subset, torn, prefix, one_lost, last_alone, unsized, sizes, old_names)
}


def _names(disk: Disk, changes: Iterable[Name]) -> dict[str, File]:
    names = dict(disk.names)
    for change in changes:
        apply_name(names, change)
    return names


def _ops(files: Iterable[File]) -> Iterable[Op]:
    return (op for file in files for op in file.unsure())


def _some(ops: Iterable[Op], share: float, chance: Random) -> list[Op]:
    draw = chance.random
    return [op for op in ops if draw() < share]


def _sectors(op: Op) -> list[Op]:
    if isinstance(op, Resize):
        return [op]
    edges = [op.at, *range((op.at // SECTOR + 1) * SECTOR, op.at + len(op.data), SECTOR), op.at + len(op.data)]
    return [Write(op.number, first, op.data[first - op.at : end - op.at]) for first, end in pairwise(edges)]


def _size_alone(op: Op) -> Op:
    """The size that the operation leaves the file at least, or at all."""
    return op if isinstance(op, Resize) else Write(op.number, op.at + len(op.data), b"")


def _within(op: Op, size: int) -> list[Op]:
    if isinstance(op, Resize):
        return []
    data = op.data[: max(size - op.at, 0)]
    return [op._replace(data=data)] if data else []
