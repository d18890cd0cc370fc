"""What befalls the files of a registry that is at work: another process changes them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Final, Self

from idemreg import Registry
from tests.torture.corrupted.asking import BUSY_S, Questions

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from idemreg.sqlite.upkeep import Mode
    from tests.torture.corrupted.series import Stage

__all__ = ["Vandal", "choose", "live"]

KINDS: Final = ("flip", "cut", "delete", "replace")


class Vandal:
    """Another process, whose hands the files of a registry come into; this one's would drop SQLite's locks."""

    def __init__(self) -> None:
        self._to, self._from = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._to[1])
                os.close(self._from[0])
                self._obey()
            finally:
                os._exit(0)
        os.close(self._to[0])
        os.close(self._from[1])

    def _obey(self) -> None:
        with os.fdopen(self._to[0], "rb") as words:
            for line in words:
                _carry_out(line.decode().rstrip("\n").split("\t"))
                os.write(self._from[1], b".")

    def tell(self, *words: object) -> None:
        os.write(self._to[1], ("\t".join(map(str, words)) + "\n").encode())
        assert os.read(self._from[0], 1) == b"."

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._to[1])
        os.close(self._from[0])


def _carry_out(words: list[str]) -> None:
    kind, path, *rest = words
    if kind == "flip":
        fd = os.open(path, os.O_RDWR)
        for at, mask in zip(rest[::2], rest[1::2], strict=True):
            byte = os.pread(fd, 1, int(at))
            os.pwrite(fd, bytes([(byte or b"\0")[0] ^ int(mask)]), int(at))
        os.close(fd)
    elif kind == "cut":
        os.truncate(path, int(rest[0]))
    elif kind == "delete":
        os.unlink(path)
    else:
        os.rename(rest[0], path)


def choose(dice: Random, *, with_checksums: bool) -> tuple[str, str]:
    """What is done to which file. Flips only where page checksums tell of them."""
    kind = dice.choice(KINDS) if with_checksums else dice.choice(KINDS[1:])
    return kind, "" if kind == "flip" else dice.choice(("", "", "-wal", "-wal", "-lock"))


def live(questions: Questions, vandal: Vandal, kind: str, suffix: str, older: Stage) -> str:
    """Open, work, be vandalised, be asked, close; then the next opener is asked. Says what was chosen."""
    dice, path = questions.dice, questions.path
    registry = Registry(path, busy_timeout=BUSY_S)
    plan = []
    for _ in range(dice.randint(1, 30)):
        if dice.random() < 0.9:
            questions.new(registry)
            plan.append("1")
        else:
            mode: Mode = dice.choice(("TRUNCATE", "PASSIVE", "RESTART"))
            with questions.asking("checkpoint"):
                registry.checkpoint(mode)
            plan.append(mode[0])
    target = path.with_name(path.name + suffix)
    words = _words(kind, target, dice, older.files.get(suffix, b"\0" * 4_096), path)
    before = dict(questions.known)
    vandal.tell(kind, target, *words)
    questions.known = dict(before)
    questions.new(registry)
    questions.ask(registry)
    if not (kind in {"replace", "delete"} and suffix != "-wal"):
        questions.ask_all()
    elif kind == "replace" and not suffix:
        # The older copy has forgotten what ran since; what was entered when it lay there must be known.
        questions.known = {
            task: known for task, known in questions.known.items() if task in older.known or task not in before
        }
        questions.ask_all()
    return f"{kind} {suffix} {' '.join(words) if kind != 'replace' else ''} behind {''.join(plan)}"


def _words(kind: str, target: Path, dice: Random, old: bytes, path: Path) -> list[str]:
    size: Any = target.stat().st_size
    if kind == "flip":
        return [str(word) for _ in range(dice.randint(1, 8)) for word in (dice.randrange(size), 1 << dice.randrange(8))]
    if kind == "cut":
        return [str(dice.randrange(max(1, size)))]
    if kind == "replace":
        copy = path.with_name("copy")
        copy.write_bytes(old)
        copy.chmod(0o600)
        return [str(copy)]
    return []
