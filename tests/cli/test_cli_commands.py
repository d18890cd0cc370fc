"""All commands, walked: help, examples, options, and what they load."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from idemreg import __version__
from idemreg.cli import COMMANDS, main
from idemreg.cli.context import Command, Settings
from idemreg.options import CallOptions
from tests.cli.driver import ROOT, Cli

if TYPE_CHECKING:
    from idemreg import Registry

# A codec is Python; the others are flags.
ONLY_IN_PYTHON = frozenset({"result", "on_lost"})


def command(name: str) -> Command:
    found = main.get_command(click.Context(main), name)
    assert isinstance(found, Command)
    return found


EXAMPLES = [example for name in COMMANDS for example in command(name).examples]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(cli: Cli, name: str) -> None:
    """`--help` of every command ends well, and shows at least one line to copy."""
    result = cli(name, "--help")
    assert result.exit_code == 0
    assert command(name).examples
    for example in command(name).examples:
        assert f"  {example}\n" in result.output


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_understood(example: str) -> None:
    """The command line accepts each line that its help shows."""
    words = shlex.split(example.partition(" | ")[0])[1:]
    with main.make_context("idemreg", words, obj=Settings()) as ctx:
        name, found, rest = main.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        assert found is not None
        found.make_context(name, rest, parent=ctx)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(name: str) -> None:
    """Every command takes --json, and --db unless it has files of its own, and documents the fields of its JSON."""
    flags = {flag for parameter in command(name).params for flag in parameter.opts}
    assert ({"--json", "--db"} if name != "demo" else {"--json"}) <= flags
    assert command(name).fields


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    """A command that exists is named in the documents."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README.md yet")
    assert f"idemreg {name}" in readme.read_text("utf-8")


def test_every_option_of_the_decorator_is_a_flag() -> None:
    """`run` has each keyword option of the Python API as a flag of the same name."""
    flags = {flag for parameter in command("run").params for flag in parameter.opts}
    names = set(CallOptions.__annotations__) | {"wait", "on_crash", "name", "payload"}
    assert {f"--{name.replace('_', '-')}" for name in names - ONLY_IN_PYTHON} <= flags


def test_alone_it_prints_help(cli: Cli) -> None:
    """`idemreg` alone is a usage error that shows every command."""
    result = cli()
    assert result.exit_code == 2
    assert all(f"  {name} " in result.stderr for name in COMMANDS)


def test_version(cli: Cli) -> None:
    """`--version` tells the version of the package."""
    assert cli("--version").output == f"idemreg {__version__}\n"


def test_unknown_command_is_explained(cli: Cli) -> None:
    """A typing error in a command's name is answered with the name that was meant."""
    result = cli("resove", "x")
    assert result.exit_code == 2
    assert "hint: Did you mean `idemreg resolve`?" in result.stderr


def unmeasured(cli: Cli) -> dict[str, str]:
    """Without coverage, which would bring modules of its own."""
    return {name: value for name, value in cli.environment().items() if name != "COVERAGE_PROCESS_CONFIG"}


@pytest.mark.parametrize("words", [["--help"], ["show", "x"], ["list"], ["--version"]])
def test_start_up_is_cheap(cli: Cli, words: list[str]) -> None:
    """Nothing slow is loaded to look at a row, and help loads no command."""
    cli("init")
    program = (
        "import sys\nfrom idemreg.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=unmeasured(cli), capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert not loaded & {
        "logging",
        "asyncio",
        "importlib.metadata",
        "importlib.resources",
        "subprocess",
        "shutil",
        "hashlib",
    }
    assert words != ["--help"] or not loaded & {"idemreg.cli.look", "idemreg.cli.run", "idemreg.cli.operate"}


def test_show_pays_for_nothing_else(cli: Cli, registry: Registry) -> None:
    """To tell about a task, neither what runs jobs nor OpenSSL is loaded, and garbage is collected again."""
    registry.run("t", lambda: {"n": 1})
    program = (
        "import atexit, gc, sys\nfrom idemreg.__main__ import start\nsys.argv = ['idemreg', 'show', 't']\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 0, *sys.modules, file=sys.stderr))\n"
        "start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=unmeasured(cli), capture_output=True, text=True, check=True
    )
    assert "succeeded" in done.stdout
    collects, is_frozen, *loaded = done.stderr.split()
    assert (collects, is_frozen) == ("True", "True")
    rooms = (
        "registry",
        "attempt",
        "claim",
        "ends",
        "options",
        "request",
        "command",
        "child",
        "signals",
        "each",
        "doctor",
        "store",
        "sqlite.backend",
    )
    assert not set(loaded) & {"hashlib", "_hashlib", "subprocess", "logging", "shutil", "difflib", "asyncio"}
    assert not set(loaded) & {f"idemreg.{room}" for room in (*rooms, "batch", "exchange", "lines", "manage", "purge")}


def test_narrow_help(cli: Cli) -> None:
    """On 60 columns no line of help but an example is wider than that."""
    for name in COMMANDS:
        lines = cli(name, "--help", COLUMNS="60").output.splitlines()
        assert not [line for line in lines if len(line) > 60 and not line.startswith("  idemreg ")]
