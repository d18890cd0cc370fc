"""The kept arguments in a damaged file, and which of them its copy has as well.

The copy is put in the file's place. So a task that asked to be rerun is rerun there by the rules of any file: one that
has become unknown not before somebody says that it did not happen. Carried over are arguments as they were written, of
a task that is not final and whose policy says that they are kept: a final one must not have any. Where the policy says
so and none are found, that of the copy says that none are kept, so that nothing looks for them, and the task is named.

An older copy of a row may be of a former task of that task_id. With the arguments of a function that does no harm,
since a rerun compares their checksum with the task's. But it executes a command's words as they are, and so they are
carried over only where they are sure, and out of a file that nobody else can have written (`idemreg.owned`): the copy
is this user's own, which is what a watch goes by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.model import FINAL, NO_CHECKSUM
from idemreg.recovery import Kept
from idemreg.sqlite.gaps import NAMED
from idemreg.sqlite.seals import values_hold

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

    from idemreg.sqlite.gaps import Gaps

__all__ = ["ARGUMENTS", "KeptRows"]

ARGUMENTS: Final = "idempotent_argument"
ARGUMENT_COLUMNS: Final = 4

_STAGE: Final = (
    "INSERT INTO kept VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET is_command = excluded.is_command,"
    " arguments = excluded.arguments, is_sure = excluded.is_sure WHERE excluded.is_sure > is_sure"
)
# The tasks that have some. A row that binds nobody has none, whatever its policy says: see `tasks.finish`.
_KEEPING: Final = (
    f"policy & 16 AND status NOT IN ({', '.join(str(int(status)) for status in FINAL)}) AND checksum <> '{NO_CHECKSUM}'"
)
_LACKING: Final = f"FROM log WHERE {_KEEPING} AND task_id NOT IN (SELECT task_id FROM kept)"  # noqa: S608 - constants


class KeptRows:
    """The rows of kept arguments, as they are found and as they go into the copy.

    ``staged``: where the rows of tasks are, in its table ``log``, before `settle`. ``takes_commands``: whether nobody
    else can have written the file.
    """

    def __init__(self, staged: apsw.Connection, *, takes_commands: bool) -> None:
        self._staged = staged
        self._takes_commands = takes_commands
        staged.execute("CREATE TABLE kept (task_id PRIMARY KEY, is_command, arguments, is_sure)")

    def take(self, values: list[Any], table: str | None, *, is_sure: bool) -> bool | None:
        """Whether it is such a row, as it was written; None where it is a row of another table.

        ``table``: to which the page belongs; None, where nothing leads there. Then what makes no sense is no row.
        """
        if table not in (None, ARGUMENTS):
            return None
        if not _holds(values):
            return None if table is None else False
        task_id, is_command, arguments, _ = values
        is_sure = is_sure and table is not None
        if not is_command or (is_sure and self._takes_commands):
            self._staged.execute(_STAGE, (task_id, is_command, arguments, is_sure))
        return True

    def settle(self, gaps: Gaps) -> Gaps:
        """Decide, once all rows are staged, which go into the copy; the gaps, these included."""
        self._staged.execute(f"DELETE FROM kept WHERE task_id NOT IN (SELECT task_id FROM log WHERE {_KEEPING})")  # noqa: S608 - constants
        count: Any
        ((count,),) = self._staged.execute(f"SELECT count(*) {_LACKING}").fetchall()
        named = self._staged.execute(f"SELECT task_id {_LACKING} ORDER BY task_id LIMIT ?", (NAMED,)).fetchall()
        return gaps._replace(
            without_arguments=tuple(str(task_id) for (task_id,) in named), tasks_without_arguments=count
        )

    def all(self) -> Iterator[tuple[str, Kept]]:
        """Those of the copy, each with its task_id, in order."""
        rows = self._staged.execute("SELECT task_id, is_command, arguments FROM kept ORDER BY task_id")
        for task_id, is_command, arguments in rows:
            yield str(task_id), Kept(bool(is_command), str(arguments))


def _holds(values: list[Any]) -> bool:
    if len(values) != ARGUMENT_COLUMNS:
        return False
    task_id, is_command, arguments, seal = values
    is_one = isinstance(task_id, str) and is_command in (0, 1) and isinstance(arguments, str)
    return is_one and values_hold(values[:-1], seal)
