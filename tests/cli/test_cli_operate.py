"""init, resolve, retry and forget: what they change, what they say, what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from idemreg import Status, Verdict
from idemreg.cli import task as rows
from idemreg.cli.operate import INIT_FIELDS
from idemreg.cli.text import width

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Registry
    from tests.cli.driver import Cli


def broken() -> None:
    msg = "no"
    raise RuntimeError(msg)


@pytest.fixture
def unknown(registry: Registry) -> str:
    with pytest.raises(RuntimeError):
        registry.run("order 42", broken, name="charge", unknown_on=RuntimeError)
    return "order 42"


@pytest.fixture
def held(registry: Registry) -> str:
    with pytest.raises(RuntimeError):
        registry.run("held", broken, name="charge", on_failure="hold")
    return "held"


def test_init_creates_once(cli: Cli, path: Path) -> None:
    """init creates the file, and later only says that it is there."""
    first, second = cli.json("init"), cli.json("init")
    assert first == {"path": str(path), "created": True}
    assert second == {"path": str(path), "created": False}
    assert list(first) == list(INIT_FIELDS)
    assert cli("init").stdout == f"{path} is a registry already\n"


def test_no_create_forbids_it(cli: Cli, path: Path) -> None:
    """With --no-create nothing is created, not even by init."""
    assert cli("--no-create", "init").exit_code == 74
    assert cli("run", "--no-create", "t", "--", "true").exit_code == 74
    assert not path.exists()


def test_resolve_happened(cli: Cli, unknown: str, registry: Registry) -> None:
    """What happened is final, with the result, the evidence and the author that were given."""
    result = cli("resolve", unknown, "happened", "--result", '{"n": [1, null]}', "--evidence", "seen", "--by", "ann")
    assert result.stdout == "order 42 is succeeded: it ran, and will not run again\n"
    task = registry.get(unknown)
    assert task is not None
    assert (task.status, task.verdict, task.evidence, task.settled_by) == (
        Status.SUCCEEDED,
        Verdict.HAPPENED,
        "seen",
        "ann",
    )
    assert registry.run(unknown, broken, name="charge").result == {"n": [1, None]}


def test_resolve_did_not_happen(cli: Cli, unknown: str, registry: Registry) -> None:
    """What did not happen may run again, and the answer says so."""
    assert cli("resolve", unknown, "did-not-happen").stdout == "order 42 is failed: the next call runs it again\n"
    assert registry.run(unknown, lambda: 1, name="charge").result == 1


def test_resolve_cannot_tell(cli: Cli, unknown: str) -> None:
    """What nobody can tell stays unknown, and the answer names the next command with the name quoted for a shell."""
    result = cli("resolve", unknown, "cannot-tell", COLUMNS="200")
    assert "order 42 is unknown: nobody knows whether it happened\n" in result.stdout
    assert "`idemreg resolve 'order 42' happened`" in result.stdout


@pytest.mark.parametrize("text", ["{", "text", "NaN", "[" * 100_000, ""])
def test_a_result_is_json(cli: Cli, unknown: str, text: str) -> None:
    """A --result that is no JSON is a usage error that shows how text is quoted, and nothing is settled."""
    result = cli("resolve", unknown, "happened", "--result", text)
    assert result.exit_code == 2
    assert "--result '\"text\"'" in result.stderr
    assert cli.json("show", unknown)["status"] == "unknown"


def test_only_what_happened_has_a_result(cli: Cli, unknown: str) -> None:
    """A result beside another verdict is refused, not dropped."""
    assert cli("resolve", unknown, "did-not-happen", "--result", "1").exit_code == 2


def test_the_author_is_the_login_name(cli: Cli, unknown: str) -> None:
    """Without --by the settlement carries the user's name, or number where there is no name."""
    cli("resolve", unknown, "cannot-tell", LOGNAME="ann")
    assert cli.json("show", unknown)["settled_by"] == "ann"
    cli("resolve", unknown, "cannot-tell", LOGNAME="", USER="")
    assert cli.json("show", unknown)["settled_by"].startswith("uid ")


def test_retry_allows_one_more_attempt(cli: Cli, held: str, registry: Registry) -> None:
    """retry runs nothing; the next call does."""
    assert cli("retry", held, "--reason", "it is back").stdout == "held is failed: the next call runs it again\n"
    assert cli.json("show", held)["evidence"] == "it is back"
    assert registry.run(held, lambda: 2, name="charge", on_failure="hold").result == 2


@pytest.mark.parametrize("columns", [80, 40, 0])
def test_on_terminals_and_in_a_pipe(cli: Cli, held: str, unknown: str, columns: int) -> None:
    """resolve, retry, forget and init tell what they did in lines that fit, in a pipe without colours."""

    def told(*words: str) -> str:
        text = cli.terminal(columns, *words) if columns else cli.process(*words).stdout
        assert all(width(line) <= (columns or 80) or "/" in line for line in text.splitlines()), text
        assert columns or "\x1b" not in text
        return " ".join(text.split())

    assert "order 42 is unknown: nobody knows whether it happened" in told("resolve", unknown, "cannot-tell")
    assert "order 42 is succeeded: it ran, and will not run again" in told("resolve", unknown, "happened")
    assert "held is failed: the next call runs it again" in told("retry", held)
    assert "forgot held (it was failed): the next call runs it" in told("forget", held)
    assert "is a registry already" in told("init")


def test_forget(cli: Cli, held: str, unknown: str, registry: Registry) -> None:
    """forget removes a row; an unknown one only by force."""
    assert cli("forget", held).stdout == "forgot held (it was failed): the next call runs it\n"
    refused = cli("forget", unknown)
    assert refused.exit_code == 1
    assert "by force" in refused.stderr
    assert cli("forget", "--force", unknown).exit_code == 0
    assert not list(registry.tasks())


@pytest.mark.parametrize(
    "words",
    [["resolve", "held", "happened"], ["retry", "order 42"], ["retry", "nope"], ["forget", "nope"]],
)
def test_what_the_status_forbids(cli: Cli, held: str, unknown: str, words: list[str]) -> None:
    """A step that the row's status does not allow is an error with a hint, and changes nothing."""
    before = cli("list", "--json").stdout
    result = cli(*words)
    assert result.exit_code == 1
    assert "  hint: " in result.stderr
    assert cli("list", "--json").stdout == before


@pytest.mark.parametrize(
    ("status", "words"),
    [("unknown", ["resolve", "order 42", "happened"]), ("held", ["retry", "held"]), ("held", ["forget", "held"])],
)
def test_json_has_the_documented_fields(cli: Cli, held: str, unknown: str, status: str, words: list[str]) -> None:
    """resolve, retry and forget answer with the row, in the fields that their help names."""
    assert list(cli.json(*words)) == list(rows.FIELDS)


def test_ids_that_begin_with_a_dash(cli: Cli, registry: Registry) -> None:
    """Behind -- a TASK_ID may begin with a dash, and hints say so."""
    with pytest.raises(RuntimeError):
        registry.run("-odd", broken, name="x", on_failure="hold")
    assert cli("show", "--", "-odd").exit_code == 0
    assert "`idemreg retry -- -odd`" in cli("show", "--", "-odd").stdout
    assert cli("retry", "--", "-odd").exit_code == 0


def test_the_file_may_be_named_on_either_side(tmp_path: Path, cli: Cli, open_registry: Callable[..., Registry]) -> None:
    """--db is taken before and behind the command's name, and goes before IDEMREG_DB."""
    other = str(tmp_path / "other.db")
    assert cli("--db", other, "init").exit_code == 0
    assert cli.json("stats", "--db", other)["path"] == other
    assert cli("stats").exit_code == 74


def test_an_unsafe_path_is_used_by_force_only(cli: Cli) -> None:
    """By the option on either side of the command, or by its variable; the doctor and the hints say it as well."""
    assert cli("init").exit_code == 0
    cli.path.parent.chmod(0o777)
    refused = cli("stats")
    assert refused.exit_code == 74
    assert "--unsafe-path" in refused.stderr
    assert cli("stats", "--unsafe-path").exit_code == 0
    assert cli("--unsafe-path", "stats").exit_code == 0
    assert cli("stats", IDEMREG_UNSAFE_PATH="1").exit_code == 0
    assert cli("stats", IDEMREG_UNSAFE_PATH="0").exit_code == 74
    assert "untrusted" in cli("doctor").stdout
    assert "untrusted" not in cli("doctor", "--unsafe-path").stdout
    hint = cli("--unsafe-path", "--db", str(cli.path), "retry", "none").stderr
    assert f"idemreg --unsafe-path --db {cli.path} list" in hint
