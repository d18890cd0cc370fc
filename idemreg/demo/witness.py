"""The witness: a plain file in which each effect is one line, written by the job itself and unknown to the registry."""

from __future__ import annotations

import os
from collections import Counter

__all__ = ["Witness"]


class Witness:
    """An append-only file of effects. Stands for whatever a job does to the world: a coupon issued, a letter posted."""

    def __init__(self, path: str) -> None:
        self.path = path

    def record(self, task_id: str, remark: str) -> None:
        """Do the effect: one line in one write, so that a kill leaves all of it or nothing."""
        line = f"{task_id} {remark}\n".encode()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(fd, line)
        finally:
            os.close(fd)
        if written != len(line):
            msg = f"{self.path} took {written} of {len(line)} bytes"
            raise OSError(msg)

    def evidence(self, task_id: str) -> str | None:
        """The task's line, with its number; None where there is none."""
        for number, line in enumerate(self.lines(), 1):
            if line.split(" ", 1)[0] == task_id:
                return f"line {number} of {os.path.basename(self.path)}: {line}"
        return None

    def effects(self) -> Counter[str]:
        """How many effects each task had."""
        return Counter(line.split(" ", 1)[0] for line in self.lines())

    def lines(self) -> list[str]:
        """All of it; nothing where there is no file yet."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []
