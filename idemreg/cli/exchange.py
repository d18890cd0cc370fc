"""Commands that carry tasks between registries: export and import."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from idemreg.cli.choosing import choosing, statuses
from idemreg.cli.context import Command, common_options, settings
from idemreg.cli.progress import bar
from idemreg.cli.render import write, write_json
from idemreg.cli.text import columns, escape, shorten
from idemreg.counted import counted
from idemreg.errors import ChecksumMismatchError
from idemreg.exchange import LINE_CHARACTERS
from idemreg.feed import read_some
from idemreg.lines import FIELDS
from idemreg.placing import new_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from idemreg.exchange import Imported

__all__ = ["IMPORT_FIELDS", "export", "import_"]

IMPORT_FIELDS: Final = {
    "read": "tasks in the export",
    "imported": "tasks that had no row here, and have one now",
    "skipped": "tasks that were here already, the same",
    "conflicting": "tasks that are here with another content, and stay as they are",
    "unknown": "imported tasks that were running when they were exported",
    "conflicts": "the first hundred of the conflicting task_ids",
}

SHOWN_CONFLICTS: Final = 10

CONFLICTS: Final = ChecksumMismatchError.exit_code

STREAM: Final = "-"


# --- export -----------------------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=["idemreg export tasks.jsonl", "idemreg export --prefix order: | gzip >orders.jsonl.gz"],
    fields=FIELDS,
)
@click.argument("out", metavar="[OUT]", required=False, type=click.Path(dir_okay=False))
@choosing("prefix", "name", "older_than", "newer_than")
@common_options()
def export(
    out: str | None,
    status: tuple[str, ...],
    prefix: str,
    name: str | None,
    older_than: float | None,
    newer_than: float | None,
) -> None:
    """Write tasks as lines of JSON, for `idemreg import` and for whatever else reads JSON.

    Between a header and an end stands one line a task, in the order of their task_id, and behind it one for each of its
    steps. To stdout (also `-`), or to the
    new file OUT, which appears complete or not at all. With --json a line about OUT follows: path, lines, bytes.
    """
    with settings().existing() as registry:
        lines = registry.export_lines(
            status=statuses(status), prefix=prefix, name=name, older_than=older_than, newer_than=newer_than
        )
        if out in {None, STREAM}:
            sys.stdout.writelines(lines)
            return
        path = os.path.abspath(out or "")
        lines_written, line = 0, ""
        with new_file(path) as part:
            with open(part, "w", encoding="ascii") as file:
                for line in lines:
                    file.write(line)
                    lines_written += 1
            size = os.path.getsize(part)
    if settings().json:
        write_json({"path": path, "lines": lines_written, "bytes": size})
    else:
        count = json.loads(line)["end"]  # steps have lines as well
        write(f"exported {counted(count, 'task')} to")
        write(escape(path))


# --- import -----------------------------------------------------------------------------------------------------


@click.command(
    "import",
    cls=Command,
    examples=["idemreg --db new.db import tasks.jsonl", "idemreg import --json tasks.jsonl"],
    fields=IMPORT_FIELDS,
)
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@common_options(creates=True)
def import_(file: str) -> int:
    """Insert the tasks of an export that have no row here; `-` is stdin.

    A task that has a row stays as it is; where it differs from the export the exit code is 65. What was running becomes
    unknown. Tokens go on above all that were given. Goes in small transactions: after Ctrl-C, or an error in a line,
    importing again goes on. Into a registry without tasks, the registry's id comes along, so downstream keys stay.
    """
    done: Imported | None = None
    with _opened(file) as source, bar("importing", hidden=settings().json) as show:
        size, position = _size(source), 0

        def lines() -> Iterator[bytes]:
            nonlocal position
            while line := source.readline(LINE_CHARACTERS + 1):
                position += len(line)
                yield line

        def progress(so_far: Imported) -> None:
            nonlocal done
            if is_new and done is None:
                settings().announce()
            done = so_far
            if size:
                show(position, size)

        # Created by the first tasks: a file that is no export leaves no registry behind.
        registry, is_new = settings().importing()
        with registry:
            try:
                done = registry.import_lines(lines(), progress=progress)
            except KeyboardInterrupt:
                read = counted(done.read if done else 0, "task")
                msg = f"interrupted: at least {read} dealt with; import again to go on"
                raise KeyboardInterrupt(msg) from None
    _tell(done)
    return CONFLICTS if done.conflicting else 0


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield io.BufferedReader(_Stdin())
    else:
        with open(file, "rb") as source:
            yield source


class _Stdin(io.RawIOBase):
    """Standard input, also where it does not block: that it has nothing yet is not its end."""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any buffer
        data = read_some(self.fileno(), len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _size(source: BinaryIO) -> int:
    """The bytes of a regular file; 0 where that cannot be told."""
    found = os.fstat(source.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _tell(done: Imported) -> None:
    if settings().json:
        write_json(done._asdict())
        return
    counts = [(done.imported, "imported"), (done.skipped, "here already, the same")]
    if done.unknown:
        counts.insert(1, (done.unknown, "of them unknown: they were running"))
    if done.conflicting:
        counts.append((done.conflicting, "here already, different, and left as they are:"))
    digits = len(f"{done.read:,}")
    for number, text in counts:
        write(shorten(f"{number:>{digits},}  {text}", columns()))
    for task_id in done.conflicts[:SHOWN_CONFLICTS]:
        write(shorten(f"{'':>{digits}}  {escape(task_id)}", columns()))
    if (more := done.conflicting - SHOWN_CONFLICTS) > 0:
        write(f"{'':>{digits}}  … and {more:,} more (--json names a hundred)")
