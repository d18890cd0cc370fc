"""Whether the tables are the very ones that `schema.sql` makes, and nothing in the file acts by itself.

A file may come from anywhere, and its schema is text that SQLite carries out. A table without its CHECKs, an index that
refuses a task, a trigger that removes one: each would make every promise void without a word. So the stored text of our
tables and indexes must be that of `schema.sql`, comments and white space apart, and nothing else may bear their prefix,
or stand on them. Of other objects, which jobs make by `claim.transaction()`, there may be any but a trigger: ours would
not carry it out (see `sqlite/connection.py`), and nobody would hear of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from idemreg.errors import StoreCorruptError

if TYPE_CHECKING:
    from idemreg.sqlite.connection import Connection

__all__ = ["bare", "check_form"]

PREFIX: Final = "idempotent_"
ENCODING: Final = "UTF-8"

# Just what SQLite takes for such: a comment that is none to SQLite would hide what it carries out.
_COMMENT_OR_SPACE: Final = r"(?:--[^\n]*|[ \t\n\f\r]+)+"


def check_form(connection: Connection, schema: str) -> None:
    """`StoreCorruptError` where the file's schema is not this one."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE type NOT IN ('table', 'index', 'view')"
        " OR lower(substr(name, 1, ?1)) = ?2 OR lower(substr(tbl_name, 1, ?1)) = ?2",
        (len(PREFIX), PREFIX),
    ).fetchall()
    for kind, name, _ in rows:
        if kind not in {"table", "index"}:
            msg = f"the file has a {kind} {name!r}: no registry has one"
            raise StoreCorruptError(msg, hint=f'Find out which program made it, and remove it: `DROP {kind} "{name}"`.')
    if not _is_verbatim([sql for _, _, sql in rows if sql is not None], schema):
        _compare(rows, schema)
    if connection.pragma("encoding") != ENCODING:
        msg = f"the file's text is not {ENCODING}"
        raise StoreCorruptError(msg)


def _is_verbatim(statements: list[Any], schema: str) -> bool:
    """Whether they stand in the schema as they are, each once: nearly always so, and a tenth of the work."""
    heads = {str(sql).partition("\n")[0] for sql in statements}
    return len(heads) == len(statements) == schema.count("\nCREATE ") and all(
        f"\n{sql};\n" in schema for sql in statements
    )


def _compare(rows: list[tuple[Any, ...]], schema: str) -> None:
    # An index of a PRIMARY KEY has no text of its own.
    found = {bare(sql): name for _, name, sql in rows if sql is not None}
    wanted = {statement for text in bare(schema).split(";") if (statement := text.strip())}
    if found.keys() != wanted:
        strange = sorted(repr(name) for sql, name in found.items() if sql not in wanted)
        what = f"{', '.join(strange)} is" if strange else "a table or an index is missing: the schema is"
        msg = f"{what} not as idemreg makes it"
        raise StoreCorruptError(msg)


def bare(statement: object) -> str:
    """The text without comments, and with single spaces."""
    return re.sub(_COMMENT_OR_SPACE, " ", str(statement)).strip()
