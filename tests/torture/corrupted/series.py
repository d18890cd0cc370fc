"""Registries to corrupt: each in four stages of its life, as the bytes of its files and what its callers were told."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from idemreg import Claim, Registry
from tests.support import raw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["OTHER", "SERIES", "SUFFIXES", "First", "Known", "Stage", "make", "place"]

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - not a temporary file: a file system in memory
SUFFIXES: Final = ("", "-wal", "-lock", "-shm")

# Name of the series -> page checksums, characters of a result.
SERIES: Final = {"plain": (False, 10), "pages": (True, 10), "large": (False, 3_000), "large pages": (True, 3_000)}
OTHER: Final = "plain"  # of which a second one is made, whose -wal is put where it does not belong

# Of the lock file: `idemreg.sqlite.rest` and `syncing` tell what stands there.
_WAL_INODE_AT: Final = 136
_NOTE_AT: Final = 192
_NOTE: Final = struct.Struct("<Qqqqq")
_LOCK_INODE_AT: Final = 256
_NUMBER: Final = struct.Struct("<Q")
_A_SECOND_NS: Final = 10**9

# Folders that the files of a first life are copied to.
_HALF: Final = "half"
_WHOLE: Final = "whole"
_COPIED: Final = ("", "-wal", "-lock")
_MOST_OTHERS: Final = 500


class Known(NamedTuple):
    """What a caller was told of a task."""

    status: str
    result: str | None = None  # of a success
    may_run: bool = False


class First(NamedTuple):
    """The files in the first life of a registry, when all that was ever written to it was in its -wal.

    Over a later database most beginnings of it are a whole one, of which nothing is amiss but that it is an older one.
    """

    half: dict[str, bytes]  # after some tasks
    whole: dict[str, bytes]  # after all that the first stage tells of
    other: bytes  # the -wal of a copy of ``half``, in which another program has done other work, and more of it


class Stage(NamedTuple):
    """The files as the last process left them. ``is_noted``: the lock file knows how the database was left."""

    files: dict[str, bytes]
    known: dict[str, Known]
    top: int  # no token was given above it
    is_noted: bool
    first: First | None = None  # of the first stage


class _Unsure(Exception):  # noqa: N818 - what a job says, and no error of ours
    """Nobody knows whether the effect happened."""


def make(name: str) -> tuple[Stage, ...]:
    """A registry in the four stages of its life: closed, killed with a -wal, closed, killed with a longer one."""
    with_checksums, size = SERIES[name]
    folder = Path(tempfile.mkdtemp(prefix="corruption-", dir=MEMORY if MEMORY.is_dir() else None))
    stages: list[Stage] = []
    known: dict[str, Known] = {}
    try:
        path = folder / "jobs.db"
        for number, is_killed in enumerate((False, True, False, True)):
            _in_a_child(functools.partial(_live, path, number, size, with_checksums, is_killed=is_killed))
            known |= _told(number, size, is_killed=is_killed)
            stages.append(_stage(path, dict(known)))
        stages[0] = stages[0]._replace(first=_first(folder))
        return tuple(stages)
    finally:
        shutil.rmtree(folder)


def _in_a_child(act: Callable[[], None]) -> None:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            act()
            code = 0
        except BaseException:  # noqa: BLE001 - it ends here
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status


def result_of(task: str, size: int) -> str:
    """What the job of a task returns."""
    return (f"{task} " * size)[:size]


def _told(stage: int, size: int, *, is_killed: bool) -> dict[str, Known]:
    told = {task: Known("succeeded", result_of(task, size)) for task in _succeeding(stage, size)}
    for status in ("failed", "unknown", "skipped", "cancelled"):  # not rerun, whose claims may be lost
        told[f"{status}:{stage}"] = Known(status)
    told[f"pending:{stage}"] = Known("pending", None, may_run=True)
    if is_killed:
        told[f"running:{stage}"] = Known("running")
    return told


def _succeeding(stage: int, size: int) -> list[str]:
    number = 60 if size < 1_000 else 12
    return [f"task:{index:03}:{stage}" for index in range(number)]


def _live(path: Path, stage: int, size: int, with_checksums: bool, *, is_killed: bool) -> None:  # noqa: FBT001
    """A process's life, with fewer syncs than give the -wal its working size."""
    registry = Registry(path, page_checksums=with_checksums)
    tasks = _succeeding(stage, size)
    for task in tasks[:4]:
        registry.run(task, functools.partial(result_of, task, size), name="job")
    claims = registry.claim_many([(task, None) for task in tasks[4:]], name="job")
    for claim in claims:
        assert isinstance(claim, Claim)
        claim.enter()
    registry.finish_many([(claim, result_of(claim.task_id, size)) for claim in claims if isinstance(claim, Claim)])
    if not stage:
        _copy(path, _HALF)
    if stage % 2:
        registry.checkpoint()
    for status, error in (("failed", ValueError("no")), ("unknown", _Unsure())):
        with contextlib.suppress(ValueError, _Unsure):
            registry.run(
                f"{status}:{stage}", functools.partial(_fail, error), name="job", on_failure="hold",
                unknown_on=(_Unsure,),
            )  # fmt: skip
    for status in ("pending", "skipped", "cancelled"):
        registry.add(f"{status}:{stage}", name="job")
    registry.skip(f"skipped:{stage}", "not wanted")
    registry.cancel(f"cancelled:{stage}")
    if not stage:
        _copy(path, _WHOLE)
    if is_killed:
        open_claims = [
            registry.claim(f"running:{stage}", name="job"),
            registry.claim(f"rerun:{stage}", name="job", on_crash="rerun"),
        ]
        assert open_claims
        os.kill(os.getpid(), signal.SIGKILL)
    registry.close()


def _fail(error: Exception) -> None:
    raise error


def _copy(path: Path, name: str) -> None:
    """Beside the registry. By `cp`: to close the database would drop SQLite's locks of this process."""
    folder = path.parent / name
    folder.mkdir()
    there = [one for suffix in _COPIED if (one := path.with_name(path.name + suffix)).exists()]
    subprocess.run(["cp", *there, folder], check=True)


def _first(folder: Path) -> First:
    half, whole = (_there(folder / name / "jobs.db", _COPIED) for name in (_HALF, _WHOLE))
    _in_a_child(functools.partial(_go_on, folder / _HALF / "jobs.db", len(whole["-wal"])))
    return First(half, whole, _there(folder / _HALF / "jobs.db", ("-wal",))["-wal"])


def _go_on(path: Path, least: int) -> None:
    """Another program, which SQLite lets write on in the -wal that lies there, until it is longer than that."""
    connection = raw.connect(path)
    connection.execute("CREATE TABLE own (n)")
    for number in range(_MOST_OTHERS):
        connection.execute("INSERT INTO own VALUES (?)", (number,))
        if path.with_name(f"{path.name}-wal").stat().st_size > least:
            os.kill(os.getpid(), signal.SIGKILL)
    msg = "the -wal does not grow"
    raise AssertionError(msg)


def _stage(path: Path, known: dict[str, Known]) -> Stage:
    there = _there(path, SUFFIXES)
    now = path.stat()
    noted = _NOTE.unpack_from(there["-lock"], _NOTE_AT)
    is_noted = noted == (1, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    copy = path.with_name("copy.db")
    for suffix in ("", "-wal"):
        if suffix in there:
            copy.with_name(copy.name + suffix).write_bytes(there[suffix])
    connection = raw.connect(copy)
    rows: list[Any] = connection.execute("SELECT max(token) FROM idempotent_log").fetchall()
    connection.close()
    return Stage(there, known, rows[0][0], is_noted)


def _there(path: Path, suffixes: Sequence[str]) -> dict[str, bytes]:
    files = {suffix: path.with_name(path.name + suffix) for suffix in suffixes}
    return {suffix: file.read_bytes() for suffix, file in files.items() if file.exists()}


def place(path: Path, files: dict[str, bytes], *, shows: bool, at_home: bool, is_replaced: bool = False) -> None:
    """Write the files there as if they had never been elsewhere.

    ``at_home``: the lock file knows the inodes; that of another database where this one ``is_replaced``. ``shows``: the
    times tell that the database was written since.
    """
    for suffix, content in files.items():
        path.with_name(path.name + suffix).write_bytes(content)
        path.with_name(path.name + suffix).chmod(0o600)
    lock = path.with_name(f"{path.name}-lock")
    if not at_home or len(files.get("-lock", b"")) < _LOCK_INODE_AT + 8 or not path.exists():
        return
    now, wal = path.stat(), path.with_name(f"{path.name}-wal")
    with lock.open("r+b") as opened:
        opened.seek(_NOTE_AT)
        noted, *_ = _NUMBER.unpack(opened.read(8))
        since = _A_SECOND_NS if shows else 0
        opened.seek(_NOTE_AT)
        inode = now.st_ino + is_replaced
        opened.write(_NOTE.pack(noted, inode, now.st_size, now.st_mtime_ns - since, now.st_ctime_ns - since))
        opened.seek(_LOCK_INODE_AT)
        opened.write(_NUMBER.pack(lock.stat().st_ino))
        if wal.exists():
            opened.seek(_WAL_INODE_AT)
            opened.write(_NUMBER.pack(wal.stat().st_ino))
