"""Nothing that is stored is imported, unpickled or called by its name: whatever was planted is data, or a typed error.

Each planted text names a trap: a module that can be imported here, and leaves a file when it is.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import ImportLineError, Registry, ResultError, Status
from idemreg.codec import DataclassCodec
from idemreg.errors import RecoveryError
from tests.cli.driver import Cli
from tests.support.raw import connect, reseal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MODULE = "idemreg_trap"
PICKLES = {  # of protocol 0: look for `go` in the module, and call it; look for it only
    "call": f"c{MODULE}\ngo\n(tR.",
    "name": f"c{MODULE}\ngo\n.",
}


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def tag(*words: object) -> str:
    return json.dumps({"$": [*words]}, separators=(",", ":"))


# Texts that have no value: an unknown tag, one that names a class or a function, another serialiser's.
NO_VALUE = {
    "unknown tag": tag(f"{MODULE}.go"),
    "module and name": tag(MODULE, "go", []),
    "an object": tag("object", f"{MODULE}.Trap", [], {}),
    "python": tag("py", f"{MODULE}:go"),
    "dataclass": tag("dataclass", f"{MODULE}.Trap", {"n": 1}),
    "enum": tag("enum", f"{MODULE}.Trap", "GO"),
    "pickle in a tag": tag("pickle", base64_of(PICKLES["call"])),
    "reduce": tag("__reduce__", [f"{MODULE}.go", []]),
    "time zone": tag("datetime", "2026-01-01T00:00:00", 0, MODULE),
    "time zone of a path": tag("datetime", "2026-01-01T00:00:00", 0, f"../{MODULE}.py"),
    "deep down": json.dumps({"a": [{"$": ["tuple", [{"$": [f"{MODULE}.go"]}]]}]}),
    "in a key": tag("dict", [[{"$": [f"{MODULE}.go"]}, 1]]),
    "beside a tag": json.dumps({"$": ["tuple", []], "py/object": f"{MODULE}.Trap"}),
    "a pickle": PICKLES["call"],
    "an expression": f"__import__('{MODULE}').go()",
}
# Texts that are plain data, whatever another program would make of them.
PLAIN: dict[str, Any] = {
    "jsonpickle": {"py/object": f"{MODULE}.Trap"},
    "jsonpickle that calls": {"py/reduce": [{"py/function": f"{MODULE}.go"}, {"py/tuple": []}]},
    "yaml": f"!!python/object/apply:{MODULE}.go []",
    "a class of a codec": {"class": f"{MODULE}.Trap", "fields": []},
    "an expression": f"__import__('{MODULE}').go()",
}


@pytest.fixture(autouse=True)
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that the trap leaves; it is not there behind the test."""
    folder, file = tmp_path / "modules", tmp_path / "sprung"
    folder.mkdir()
    source = f"open({str(file)!r}, 'w').close()\nclass Trap:\n    GO = 1\n\n    def __init__(*_): pass\n\n\ngo = Trap\n"
    (folder / f"{MODULE}.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(folder)
    yield file
    assert sys.modules.pop(MODULE, None) is None, "the module that was named is imported"
    assert not file.exists(), "the module that was named was run"


def never() -> None:
    pytest.fail("the job was entered")


def plant(path: Path, statement: str, *values: object) -> None:
    """As a program that knows the format writes it: under right seals."""
    with contextlib.closing(connect(path)) as connection:
        connection.execute(statement, values)
        reseal(connection)


def plant_result(path: Path, text: str) -> None:
    plant(path, "UPDATE idempotent_log SET result = ? WHERE task_id = 't'", text)


@pytest.mark.parametrize("way", PICKLES)
def test_the_trap_springs(sprung: Path, way: str) -> None:
    """Whoever unpickles what was planted here runs it."""
    pickle.loads(PICKLES[way].encode())  # noqa: S301 - to show what a reader would do that trusts
    assert sprung.exists()
    sprung.unlink()
    del sys.modules[MODULE]


@dataclasses.dataclass
class Trap:
    """Of the same name as the one of the module."""

    n: int = 1


READERS: dict[str, Callable[[Registry], object]] = {
    "run": lambda registry: registry.run("t", never, name="job"),
    "run with a codec": lambda registry: registry.run("t", never, name="job", result=DataclassCodec(Trap)),
    "claim": lambda registry: registry.claim("t", name="job"),
}


@pytest.mark.parametrize("text", NO_VALUE.values(), ids=NO_VALUE)
@pytest.mark.parametrize("reader", READERS)
def test_a_planted_result_is_a_result_error(registry: Registry, path: Path, reader: str, text: str) -> None:
    """Nobody gets a value, no job is entered, and the row stays what it is: succeeded."""
    registry.run("t", lambda: 1, name="job")
    plant_result(path, text)
    for _ in range(2):
        with pytest.raises(ResultError):
            READERS[reader](registry)
    task = registry.get("t")
    assert task is not None
    assert (task.status, task.result) == (Status.SUCCEEDED, text)


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_another_serialisers_result_is_plain_data(registry: Registry, path: Path, value: object) -> None:
    """What means something to other programs comes back as the dict, or the text, that it is."""
    registry.run("t", lambda: 1, name="job")
    plant_result(path, json.dumps(value))
    assert registry.run("t", never, name="job").result == value


def test_bytes_of_a_pickle_are_bytes(registry: Registry, path: Path) -> None:
    """A tag that is known gives its own type, and looks no further."""
    registry.run("t", lambda: 1, name="job")
    plant_result(path, tag("bytes", base64_of(PICKLES["call"])))
    assert registry.run("t", never, name="job").result == PICKLES["call"].encode()


def test_a_class_that_was_not_named_is_not_looked_for(registry: Registry, path: Path) -> None:
    """A codec makes what it was given, whatever module a row names."""
    registry.run("t", lambda: 1, name="job")
    plant_result(path, json.dumps({"class": f"{MODULE}.Trap", "fields": [["n", 1]]}))
    with pytest.raises(ResultError):
        registry.run("t", never, name="job", result=Trap)


@pytest.mark.parametrize("text", NO_VALUE.values(), ids=NO_VALUE)
def test_a_planted_step_is_a_result_error(registry: Registry, path: Path, text: str) -> None:
    """A step that is done is not run again for the sake of what stands in its place."""
    with registry.claim("t", name="job") as claim:
        claim.run_step("first", lambda: 1)
        claim.fail(ValueError("later"))
    plant(path, "UPDATE idempotent_step SET result = ?", text)
    with registry.claim("t", name="job") as claim, pytest.raises(ResultError):
        claim.run_step("first", never)


@pytest.mark.parametrize("text", NO_VALUE.values(), ids=NO_VALUE)
def test_planted_arguments_run_nothing(registry: Registry, path: Path, text: str) -> None:
    """A sweep tells that they are none, and leaves the task to a person."""

    @registry.idempotent("t", name="job", on_crash="rerun", recover=True)
    def job(n: int) -> None:
        ran.append(n)
        raise KeyboardInterrupt

    ran: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        job(1)
    plant(path, "UPDATE idempotent_argument SET arguments = ?", text)
    (one,) = registry.sweep()
    assert (one.did, type(one.error)) == ("left", RecoveryError)
    assert ran == [1]


def test_a_job_that_is_named_is_not_looked_for(registry: Registry, path: Path) -> None:
    """A sweep calls the functions that its program has decorated, and none by the name that a row has."""

    @registry.idempotent("t", name="job", on_crash="rerun", recover=True)
    def job() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job()
    for name in (f"{MODULE}:go", f"{MODULE}.go"):
        plant(path, "UPDATE idempotent_log SET name = ?", name)
        (one,) = registry.sweep()
        assert (one.did, type(one.error)) == ("left", RecoveryError)


def export_of(registry: Registry, text: str, *, of_step: bool) -> list[str]:
    """An export with the text in the place of a result."""
    with registry.claim("t", name="job") as claim:
        claim.run_step("first", lambda: 1)
        claim.result = 1
    lines = list(registry.export_lines())
    at = 2 if of_step else 1
    lines[at] = json.dumps(json.loads(lines[at]) | {"result": text})
    return lines


@pytest.mark.parametrize("text", NO_VALUE.values(), ids=NO_VALUE)
@pytest.mark.parametrize("of_step", [False, True], ids=["result", "step"])
def test_a_planted_line_is_refused_or_has_no_value(
    registry: Registry, tmp_path: Path, text: str, *, of_step: bool
) -> None:
    """What is no JSON is refused by its line; what no tag knows comes over as it is: a `ResultError` there too."""
    lines = export_of(registry, text, of_step=of_step)
    with Registry(tmp_path / "other.db") as other:
        if not is_json(text):
            with pytest.raises(ImportLineError, match=f"line {3 if of_step else 2}: "):
                other.import_lines(lines)
            return
        assert other.import_lines(lines).imported == 1
        assert [*map(json.loads, other.export_lines())][1:-1] == [*map(json.loads, lines)][1:-1]
        if not of_step:
            with pytest.raises(ResultError):
                other.run("t", never, name="job")


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("text", NO_VALUE.values(), ids=NO_VALUE)
def test_commands_read_no_more_into_it(path: Path, text: str) -> None:
    """They show it, or say that it is no result, and end in order."""
    with Registry(path) as registry:
        registry.run("t", lambda: 1, name="job")
    plant_result(path, text)
    cli = Cli(path)
    for words in (["show", "t"], ["list"], ["export", "-"], ["doctor"]):
        done = cli(*words)
        assert "Traceback" not in done.stderr, words
        assert done.exit_code in {0, 1, 2, 65}, words
