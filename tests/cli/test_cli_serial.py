"""`idemreg serial`: one a line, each above the last, from whatever process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from idemreg import Registry
from idemreg.cli.serial import SERIAL_FIELDS

if TYPE_CHECKING:
    from tests.cli.driver import Cli


def test_each_call_gives_one_above_the_last(cli: Cli) -> None:
    """Processes one after the other, the first of which creates the file and says so."""
    first, second = cli.process("serial", "COUP"), cli.process("serial", "COUP")
    assert (first.returncode, second.returncode, second.stderr) == (0, 0, "")
    assert "created" in first.stderr
    assert first.stdout.startswith("COUP-")
    assert first.stdout < second.stdout


def test_count_gives_so_many_lines(cli: Cli) -> None:
    """In order; with --json an object a line, with the fields that the help names."""
    lines = cli("serial", "COUP", "--count", "5").stdout.splitlines()
    assert lines == sorted(set(lines))
    assert len(lines) == 5
    rows = [json.loads(line) for line in cli("serial", "COUP", "--count", "2", "--json").stdout.splitlines()]
    assert [list(row) for row in rows] == [list(SERIAL_FIELDS)] * 2
    assert lines[-1] < rows[0]["serial"] < rows[1]["serial"]


def test_a_prefix_that_is_none_is_a_usage_error(cli: Cli) -> None:
    """Exit code 2 with a hint, and no file comes into being; --no-create makes none either."""
    result = cli.process("serial", "CO-UP")
    assert result.returncode == 2
    assert "hint: A prefix is" in result.stderr
    assert cli.process("serial", "--no-create", "COUP").returncode == 74
    assert not cli.path.exists()


def test_no_key_is_asked_for(cli: Cli) -> None:
    """Serials make no checksum, so a registry whose checksums have a key gives them to anybody who may write it."""
    with Registry(cli.path, durability="normal", checksum_key=b"k" * 16) as registry:
        registry.run("t", lambda: 1)
    assert cli("serial", "COUP").exit_code == 0
