"""The mutants of the door: what comes in from outside, and what goes out to a terminal."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant, Patch

__all__ = ["DOOR"]

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
