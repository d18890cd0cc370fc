"""The mutants of the door: what comes in from outside, and what goes out to a terminal."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch
from tests.mutants.rows import Off, Row, mutants

__all__ = ["DOOR", "HARDENING"]

DOOR: Final[tuple[Mutant, ...]] = (
    Mutant(
        "id-with-control-characters",
        "a task_id may hold control characters and line separators",
        (
            Patch(
                "idemreg/template.py",
                '_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})',
                '_REFUSED_CATEGORIES: Final = frozenset({"Cs"})',
            ),
        ),
    ),
    Mutant(
        "json-not-ascii",
        "JSON goes out with characters that turn a terminal's text around",
        (
            Patch(
                "idemreg/cli/render.py",
                'json.dumps(fields, separators=(", ", ": "))',
                'json.dumps(fields, separators=(", ", ": "), ensure_ascii=False)',
            ),
        ),
    ),
    Mutant(
        "path-not-looked-at",
        "links, and folders that everybody may write, are taken",
        (
            Patch(
                "idemreg/sqlite/opening.py",
                "check_trust(self.path, location.database, is_forced=self._unsafe_path)",
                "check_trust(self.path, location.database, is_forced=True)",
            ),
        ),
    ),
    Mutant(
        "schema-not-looked-at",
        "any schema is taken that says it is of idemreg, triggers included",
        (Patch("idemreg/sqlite/upkeep.py", "    check_form(connection, schema.read_text())\n", ""),),
    ),
    Mutant(
        "text-as-stored",
        "what is stored goes to the terminal as it is",
        (
            Patch(
                "idemreg/cli/text.py",
                "    if text.isprintable():\n        return text",
                "    if text:\n        return text",
            ),
        ),
    ),
    Mutant(
        "traceback-of-typed-errors",
        "an error of idemreg's own shows its traceback on the command line",
        (
            Patch(
                "idemreg/cli/failures.py",
                'if report["error"] == "unexpected" and os.environ.get(DEBUG_VARIABLE):',
                'if report["error"] != "usage":',
            ),
        ),
    ),
    Mutant(
        "unexpected-os-errors",
        "an error of the operating system ends a command as a bug of idemreg would",
        (
            Patch(
                "idemreg/cli/failures.py",
                "    if isinstance(error, OSError):\n        where =",
                "    if not error:\n        where =",
            ),
        ),
    ),
)

CONNECTION: Final = "idemreg/sqlite/connection.py"
LOOKING: Final = "idemreg/sqlite/looking.py"
REST: Final = "idemreg/sqlite/rest.py"
ENDS: Final = "idemreg/ends.py"
NOTHING_ON: Final = "test_nothing_that_a_file_could_use_is_on"
NO_LINK: Final = "test_a_link_that_was_put_there_behind_the_look_is_not_followed"

# What is there for files that come from anywhere. The trial does not see it gone: what it plants is refused before.
HARDENING: Final[tuple[Mutant, ...]] = (
    *mutants(
        "hardening",
        Off(),
        "tests/test_hardening.py",
        Row(
            "schema-trusted",
            "a table in the file may call any function of the program",
            (
                Patch(
                    CONNECTION,
                    "    (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),"
                    "  # no function with an effect in a CHECK, an index or a view\n",
                    "",
                ),
            ),
            "test_a_schema_calls_no_function_of_the_programs",
        ),
        Row(
            "extensions-left-on",
            "extensions can be loaded where the program has switched them on",
            (Patch(CONNECTION, "    (apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),\n", ""),),
            NOTHING_ON,
        ),
        Row(
            "not-defensive",
            "the schema is a table that can be written",
            (Patch(CONNECTION, "    (apsw.SQLITE_DBCONFIG_DEFENSIVE, 1),", "    #"),),
            NOTHING_ON,
        ),
        Row(
            "attach-left-on",
            "other databases can be attached",
            (Patch(CONNECTION, "    connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 0)\n", ""),),
            NOTHING_ON,
        ),
        Row(
            "look-not-hardened",
            "the connection of a look has everything on",
            (Patch(LOOKING, "    connections.harden(connection)\n", ""),),
            "test_a_look_has_nothing_on_either",
        ),
        Row(
            "uncovered-not-hardened",
            "the connection that looks at a database without its -wal has everything on",
            (Patch(REST, "        harden(plain)", "        #"),),
            "test_what_lies_under_a_strange_wal_calls_nothing",
        ),
        Row(
            "link-followed",
            "a link that takes the place of the database behind the look at it is followed",
            (Patch(CONNECTION, "SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW", "SQLITE_OPEN_READWRITE"),),
            NO_LINK,
        ),
        Row(
            "link-followed-by-a-look",
            "a look follows it",
            (Patch(LOOKING, "flags=flags | apsw.SQLITE_OPEN_NOFOLLOW", "flags=flags"),),
            NO_LINK,
        ),
        Row(
            "link-followed-without-a-wal",
            "whoever looks at a database without its -wal follows it",
            (Patch(REST, "apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW", "apsw.SQLITE_OPEN_URI"),),
            "test_what_lies_under_a_wal_is_looked_at_behind_no_link",
        ),
    ),
    *mutants(
        "bound",
        Off(),
        "tests/test_secrets.py",
        Row(
            "errors-of-any-length",
            "the bound of a stored traceback is one that no traceback reaches",
            (Patch(ENDS, "ERROR_CHARACTERS: Final = 4_096", "ERROR_CHARACTERS: Final = 10_000_000"),),
            "test_a_huge_traceback_is_bounded",
        ),
        Row(
            "tracebacks-unbounded",
            "a traceback is stored as long as it is",
            (
                Patch(
                    ENDS,
                    'return bounded(f"{head}\\n{frames}".rstrip(), ERROR_CHARACTERS)',
                    'return f"{head}\\n{frames}".rstrip()',
                ),
            ),
            "test_a_huge_traceback_is_bounded",
        ),
    ),
)
