"""What befalls the files of a registry that is at work: another process changes them."""

from __future__ import annotations

import functools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from idemreg import Registry
from tests.torture.corrupted.asking import BUSY_S, Questions
from tests.torture.corrupted.loss import Blow, stays_lost, strike, vanished

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from idemreg.sqlite.backend import SqliteStore
    from idemreg.sqlite.checkpoints import Mode
    from tests.torture.corrupted.series import Known, Stage

__all__ = ["Vandal", "choose", "live"]

KINDS: Final = ("flip", "cut", "delete", "replace")
AMID_A_JOB: Final = 0.3  # of all blows
# Of the cuts of a -wal, those right below its used end, by bytes of about one commit: the next gives it its size back.
CLOSELY: Final = 0.7
A_COMMIT: Final = 5_000


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
    # A -shm that is cut is SIGBUS.
    suffixes = ("", "", "-wal", "-wal", "-lock") if kind == "cut" else ("", "", "-wal", "-wal", "-lock", "-shm")
    return kind, "" if kind == "flip" else dice.choice(suffixes)


def live(questions: Questions, vandal: Vandal, kind: str, suffix: str, older: Stage) -> str:
    """Open, work, be vandalised, be asked, close; then the next opener is asked. Says what was chosen.

    At durability "normal" no claim is synced, so nothing looks at the files but the guard.
    """
    dice, path = questions.dice, questions.path
    durability: Literal["full", "normal"] = dice.choice(("full", "normal"))
    registry = Registry(path, busy_timeout=BUSY_S, durability=durability)
    plan = _work(questions, registry)
    target = path.with_name(path.name + suffix)
    used, seen = _sizes(registry)
    words = _words(kind, target, dice, older.files.get(suffix, b"\0" * 4_096), used)
    blow = Blow(kind, suffix, int(words[0]) if kind == "cut" else 0, used, seen)
    hit = functools.partial(vandal.tell, kind, target, *words)
    if is_amid := dice.random() < AMID_A_JOB:
        strike(questions, registry, blow, hit, is_durable=durability == "full")
    else:
        hit()
    before = dict(questions.known)
    stays_lost(questions, registry, blow)
    _ask(questions, registry, blow, older, before, is_durable=durability == "full")
    chosen = " ".join(words) if kind != "replace" else ""
    return f"{durability} {kind} {suffix} {chosen} {'amid' if is_amid else 'behind'} {plan}"


def _work(questions: Questions, registry: Registry) -> str:
    """New tasks, and a checkpoint now and then; the letters of what was done."""
    dice, plan = questions.dice, ""
    for _ in range(dice.randint(1, 30)):
        if dice.random() < 0.9:
            questions.new(registry)
            plan += "1"
        else:
            mode: Mode = dice.choice(("TRUNCATE", "PASSIVE", "RESTART"))
            with questions.asking("checkpoint"):
                registry.checkpoint(mode)
            plan += mode[0]
    return plan


def _sizes(registry: Registry) -> tuple[int, int]:
    """Bytes of the -wal that are not in the database yet, and of the database as the guard has seen it last."""
    opened = cast("SqliteStore", registry.store)._opening.current
    if opened is None or (index := opened.database.index) is None or (guard := opened.database.guard) is None:
        return 0, sys.maxsize
    return 0 if index.moved == index.frames else index.used_bytes, guard._size


def _ask(
    questions: Questions, registry: Registry, blow: Blow, older: Stage, before: dict[str, Known], *, is_durable: bool
) -> None:
    if not is_durable and blow.suffix == "-wal":  # of which nothing was synced: what it held may be gone with it
        with questions.asking("close"):
            registry.close()
        return
    questions.ask(registry)
    if blow.kind not in {"replace", "delete"} or blow.suffix in {"-wal", "-shm"}:
        questions.ask_all()
    elif blow.kind == "replace" and not blow.suffix:
        # The older copy has forgotten what ran since; what was entered when it lay there must be known.
        questions.known = {
            task: known for task, known in questions.known.items() if task in older.known or task not in before
        }
        questions.ask_all()
    elif blow.kind == "delete" and not blow.suffix:
        vanished(questions)


def _words(kind: str, target: Path, dice: Random, old: bytes, used: int) -> list[str]:
    size: Any = target.stat().st_size
    if kind == "flip":
        return [str(word) for _ in range(dice.randint(1, 8)) for word in (dice.randrange(size), 1 << dice.randrange(8))]
    if kind == "cut" and target.name.endswith("-wal") and used and dice.random() < CLOSELY:
        return [str(used - dice.randint(1, min(used, A_COMMIT)))]
    if kind == "cut":
        return [str(dice.randrange(max(1, size)))]
    if kind == "replace":
        copy = target.with_name("copy")
        copy.write_bytes(old)
        copy.chmod(0o600)
        return [str(copy)]
    return []
