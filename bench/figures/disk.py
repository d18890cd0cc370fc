"""What a row takes on the disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from bench.by_hand import ByHand
from bench.contenders import CRASH
from bench.model import Figure, Measured, Side, Value, at_most
from idemreg import Registry

if TYPE_CHECKING:
    from bench.model import Scale

__all__ = ["FIGURES"]

ID: Final = "order:{:014d}"  # 20 characters


def measure(scale: Scale, folder: str) -> Measured:
    """The database's size with the rows, less its size before them, all of the -wal moved into it."""
    ours, hand = os.path.join(folder, "jobs.db"), os.path.join(folder, "by_hand.db")
    with Registry(ours, durability="normal") as registry:
        registry.run(ID.format(0), lambda: {"ok": 1}, name="ship")
        registry.checkpoint("TRUNCATE")
        empty = os.stat(ours).st_size
        for number in range(1, scale.disk_rows + 1):
            registry.run(ID.format(number), lambda: {"ok": 1}, name="ship")
        registry.checkpoint("TRUNCATE")
        bytes_a_row = (os.stat(ours).st_size - empty) / scale.disk_rows
    by_hand = ByHand(hand, "normal")
    empty = os.stat(hand).st_size
    for number in range(scale.disk_rows):
        by_hand.call(ID.format(number), _ship)
    by_hand.connection.pragma("wal_checkpoint", "truncate")
    by_hand_bytes = (os.stat(hand).st_size - empty) / scale.disk_rows
    by_hand.close()
    return Measured(
        [Value("bytes a row", "bytes", [bytes_a_row], at_most(190))],
        [
            Side("idemreg", "row", "bytes", [bytes_a_row], CRASH),
            Side("by hand", "row", "bytes", [by_hand_bytes], CRASH),
        ],
    )


def _ship() -> dict[str, int]:
    return {"ok": 1}


FIGURES: Final = (
    Figure(
        "disk",
        "Bytes a row on disk",
        "normal",
        "Ordered task_ids of 20 characters, a small dict as result, a job's name of 4 characters; the file's growth.",
        measure,
    ),
)
