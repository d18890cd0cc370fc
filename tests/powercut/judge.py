"""Reads what a cut left, with real SQLite, and compares it with what callers had been told.

The quick look reads the tables through apsw, in exclusive locking mode: the -wal is recovered into memory, and nothing
is written, so the next image can be built on this one. The thorough look (`reboot.py`) opens a copy with a whole
`Registry`.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import apsw

from idemreg.model import FINAL, Status
from idemreg.sqlite.pages import vfs
from tests.powercut.image import Folder
from tests.powercut.told import Found, Row

if TYPE_CHECKING:
    from tests.powercut.image import Content

__all__ = ["Reader", "problem_beside"]

SUCCEEDED: Final = int(Status.SUCCEEDED)

_TABLES: Final = "SELECT name FROM sqlite_schema WHERE name IN ('idempotent_registry', 'effect')"
_ROWS: Final = "SELECT task_id, status, token, result, is_large, attempt FROM idempotent_log"
_LARGE: Final = "SELECT task_id, result FROM idempotent_large"
_FLOOR: Final = "SELECT floor FROM idempotent_registry"
_EFFECTS: Final = "SELECT task, token FROM effect"
_KEPT: Final = "SELECT task_id, arguments FROM idempotent_argument"
_STEPS: Final = "SELECT task_id, name, result FROM idempotent_step"

_NOTHING: Final = Found({}, 0)


class Reader:
    """Shows images in a folder of its own, and reads them."""

    def __init__(self, folder: str, database: str) -> None:
        self._folder = Folder(folder)
        self._path = os.path.join(folder, database)
        # What SQLite reads.
        self.names = (database, f"{database}-wal", f"{database}-journal")

    def read(self, image: dict[str, Content]) -> Found:
        """What SQLite finds there after the power is back."""
        database, wal, journal = self.names
        if database not in image:
            return _NOTHING
        self._folder.show({name: image[name] for name in self.names if name in image})
        try:
            return self._read()
        except (apsw.Error, UnicodeDecodeError) as error:  # apsw reads damaged text as it is
            return _NOTHING._replace(problem=f"{type(error).__name__}: {error}")
        finally:
            if journal in image:
                self._folder.forget()  # it was rolled back into the database
            elif wal not in image and os.path.exists(f"{self._path}-wal"):
                os.unlink(f"{self._path}-wal")  # SQLite made an empty one

    def _read(self) -> Found:
        connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs())

        def every(statement: str) -> list[Any]:
            return connection.execute(statement).fetchall()

        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            every("PRAGMA locking_mode = exclusive")
            tables = every(_TABLES)
            if not tables:
                return _NOTHING
            rows = every(_ROWS)
            large = dict(every(_LARGE)) if any(row[4] for row in rows) else {}
            effects = every(_EFFECTS) if len(tables) > 1 else []
            kept = dict(every(_KEPT))
            steps = {(task, name): result for task, name, result in every(_STEPS)}
            ((floor,),) = every(_FLOOR)
            check = every("PRAGMA integrity_check")
        finally:
            connection.close()
        found = {
            task: Row(token, (status, None if status != SUCCEEDED else large.get(task) if is_large else result))
            for task, status, token, result, is_large, _ in rows
        }
        begun = {task for task, *_, attempt in rows if attempt}
        problem = _problem(check, found, effects) or problem_beside(found, begun, kept, steps)
        return Found(found, floor, problem, steps)

    def close(self) -> None:
        self._folder.forget()


def _problem(check: list[tuple[str]], rows: dict[str, Row], effects: list[tuple[str, int]]) -> str:
    if check != [("ok",)]:
        return f"integrity_check: {check[0][0]}"
    done = {(task, row.token) for task, row in rows.items() if task[0] == "e" and row.state[0] == SUCCEEDED}
    if len(effects) != len(done) or done.difference(effects):
        return f"the effects {effects} are not those of the tasks that succeeded, {sorted(done)}"
    return ""


def problem_beside(
    rows: dict[str, Row], begun: set[str], kept: dict[str, str], steps: dict[tuple[str, str], str]
) -> str:
    """Arguments are kept from the claim of their task to its final end, in the commits of both, and steps are a task's.

    ``begun``: tasks of which an attempt counts; of one that was put back before its job nothing is kept.
    """
    for task, row in rows.items():
        is_final = row.state[0] in FINAL
        if task in kept and (is_final or kept[task] != json.dumps({"task": task}, separators=(",", ":"))):
            return f"{task} is {row}, and keeps {kept[task]}"
        if task[0] == "k" and task not in kept and task in begun and not is_final:
            return f"{task} is {row}, and its arguments are gone"
    if orphans := {*kept, *(task for task, _ in steps)}.difference(rows):
        return f"left behind by tasks that are gone: {sorted(orphans)}"
    return ""
