"""`idemreg serial`: ids that never repeat and never go back."""

from __future__ import annotations

import os
from typing import Final

import click

from idemreg.cli.context import Command, common_options, settings
from idemreg.cli.render import write, write_json

__all__ = ["SERIAL_FIELDS", "serial"]

MOST: Final = 1_000_000  # of one call

SERIAL_FIELDS: Final = {
    "serial": "the number, at most 32 characters",
    "prefix": "what it begins with",
    "path": "the registry's file",
}


@click.command(
    cls=Command,
    examples=["idemreg serial COUP", "idemreg serial --count 100 COUP | tee serials.txt"],
    fields=SERIAL_FIELDS,
)
@click.argument("prefix", metavar="PREFIX")
@click.option(
    "--count", type=click.IntRange(1, MOST), default=1, show_default=True, metavar="N", help="So many, one a line."
)
@common_options(creates=True)
def serial(prefix: str, count: int) -> None:
    """Write a serial number: PREFIX, and what no other call of any process was or will be given.

    Serials of a PREFIX (1 to 8 letters, digits or underscores) sort as plain text in the order in which they were
    given, whatever the clock did in between: how far they have come stands in the registry. Each call reserves its own
    by a commit.
    """
    from idemreg.serials import check_prefix  # noqa: PLC0415 - the help text needs none of it

    check_prefix(prefix)  # before a file comes into being for it
    registry, is_new = settings().importing()  # which needs no key of checksums
    with registry:
        if is_new:
            registry.open()
            settings().announce()
        numbers, path = registry.serials(prefix), os.path.abspath(settings().path())
        for _ in range(count):
            number = numbers.next()
            if settings().json:
                write_json({"serial": number, "prefix": prefix, "path": path})
            else:
                write(number)
