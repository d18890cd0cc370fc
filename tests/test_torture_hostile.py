"""The trial of hostile input is content with the product, and judges aright what it sees.

That it finds its mutants is tried by ``make torture ARGS="--power --only hostile"``.
"""

from __future__ import annotations

import asyncio
import os
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import AsyncRegistry, IdemregError, Registry, TaskIdError
from tests.test_torture_io_errors import public
from tests.torture import hostile
from tests.torture.hostile import Shown, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Kind = Callable[[hostile.Scene, Random], tuple[Any, list[str]]]


def test_hostile_input_is_refused_in_order() -> None:
    """A tiny count of it: nothing is wrong, nearly all of it is distinct, and every kind of it was tried."""
    before = set(os.listdir())
    tally = run(4, 150)
    left = set(os.listdir()) - before
    assert not {name for name in left if not name.startswith(".coverage")}  # what another process has measured
    assert tally.violations == []
    assert len(tally.distinct) > 120
    assert tally.events.keys() == {"command", "call", "planted", "tampered", "process"}


# What does nothing with what it is given, or stands beneath the public calls.
BENEATH = {
    *(
        "async_terms",
        "checked",
        "may_schedule",
        "offload",
        "reader",
        "recoverable",
        "schedules",
        "store",
        "teller",
        "terms",
    ),
    *("check_clock", "close", "open", "scheduled"),  # without arguments, or in the same call as another
}


def test_every_public_call_is_tried() -> None:
    """A public method cannot come without a hostile call of it."""
    tried = {name.partition(" ")[0] for name in hostile.CALLS}
    assert public(Registry) - BENEATH - tried == set()


def fail_with(registry: Registry, error: Any) -> None:
    with registry.claim("task") as claim:
        claim.fail(error)


async def fail_with_awaited(registry: Registry, error: Any) -> None:
    async with AsyncRegistry.of(registry).claim("task") as claim:
        await claim.fail(error)


NESTED: Any = []  # too deep for a repr
for _ in range(100_000):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "call",
    [
        lambda registry: registry.run_slot({}),
        lambda registry: registry.audit("job", since="5"),
        lambda registry: registry.audit(7),
        lambda registry: registry.pause(object),
        lambda registry: registry.resume(7),
        lambda registry: registry.tasks(prefix=7.5),
        lambda registry: registry.tasks(name=7.5),
        lambda registry: registry.export_lines(prefix=None),
        lambda registry: registry.purge(prefix=b"x", older_than=1),
        lambda registry: registry.owner("task"),
        lambda registry: registry.run("task", int, unknown_on=Unspeakable()),
        lambda registry: registry.scheduled("job", cron="0 * * * *", tz=NESTED),
        lambda registry: registry.scheduled("job", cron=NESTED),
        lambda registry: registry.scheduled("job", cron="0 * * * *", limit=NESTED),
        lambda registry: registry.scheduled("job", cron="0 * * * *", coalesce=NESTED),
        lambda registry: fail_with(registry, "later"),
        lambda registry: fail_with(registry, ValueError),
        lambda registry: asyncio.run(fail_with_awaited(registry, "later")),
    ],
)
def test_what_is_of_another_kind_is_refused_at_once(registry: Registry, call: Callable[[Registry], object]) -> None:
    """By a TypeError, or idemreg's own error, and not by whatever it comes to far below."""
    with pytest.raises((TypeError, IdemregError)) as refused:
        call(registry)
    assert "not" in str(refused.value)


class Unspeakable:
    """Has no spelling."""

    def __repr__(self) -> str:
        raise RuntimeError


def test_the_same_seed_tries_the_same() -> None:
    """So what a trial finds is found again."""
    assert run(5, 40).distinct == run(5, 40).distinct


# --- what is wrong with what was shown --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "words", "says"),
    [
        (Shown(0, "fine: \u00e9\u00a0\n", ""), ["list"], None),
        (Shown(74, "", "idemreg: the disk is full\n"), ["list"], None),
        (Shown(0, "\x1b[1mfine\x1b[0m", ""), ["doctor"], "stdout has a raw '\\x1b'"),
        (Shown(0, "", "\u202efine"), ["list"], "stderr has a raw '\\u202e'"),
        (Shown(70, "", "idemreg: unexpected"), ["list"], "exit code 70"),
        (Shown(74, "", ""), ["list"], "exit code 74, and no line that says why"),
        (Shown(2, "", "Traceback (most recent call last)\nUsage: "), ["list"], "a traceback"),
    ],
)
def test_what_a_command_shows_is_judged(shown: Shown, words: list[str], says: str | None) -> None:
    """Nothing reaches the terminal raw, exit codes are documented ones, and a refusal says why."""
    assert list(hostile._shown_wrong(shown, words)) == ([says] if says else [])


def test_colours_are_for_terminals() -> None:
    """They may stand there, and nothing else of that kind."""
    assert list(hostile._shown_wrong(Shown(0, "\x1b[1mfine\x1b[0m", ""), ["list"], on_terminal=True)) == []
    assert list(hostile._shown_wrong(Shown(0, "\x1b[2Jgone", ""), ["list"], on_terminal=True))


def test_json_is_judged() -> None:
    """Where it is asked for, each line is some."""
    assert list(hostile._json_wrong(Shown(0, '{"a": 1}\n[]\n', ""), ["--json", "list"])) == []
    assert list(hostile._json_wrong(Shown(0, "{}\nfine\n", ""), ["--json", "list"])) == [
        "a line that is no JSON: 'fine'"
    ]


@pytest.mark.parametrize(
    ("error", "is_wrong"),
    [
        (TaskIdError("no"), False),
        (ValueError("no"), False),
        (ValueError(), True),
        (IdemregError(""), True),
        (OSError("no"), True),
        (UnicodeEncodeError("ascii", "x", 0, 1, "no"), True),
    ],
)
def test_an_error_is_judged(error: Exception, *, is_wrong: bool) -> None:
    """A call raises ours, with a hint, or a ValueError or TypeError with words; and nothing else."""
    assert (hostile._raised_wrong(error) is not None) == is_wrong


@pytest.mark.parametrize("task_id", ["", "a\nb", "\x1b[2J", "\ud800", "\u2028", b"a", 1, None])
def test_what_is_no_task_id(task_id: object) -> None:
    """Empty, no text, or with what a line or a terminal would take for more than text."""
    assert hostile._is_no_task_id(task_id)
    assert not hostile._is_no_task_id("a:\u202e")


@pytest.mark.parametrize("kind", [hostile._planted, hostile._tampered])
def test_a_command_that_takes_a_hostile_file_is_seen(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_registry: Callable[..., Registry], path: Path
) -> None:
    """Whatever was planted, or done to the file: whoever is content with it is a violation."""
    open_registry().add("task:1", name="job")
    open_registry().close()
    monkeypatch.setattr(hostile, "_invoke", lambda *_: Shown(0, "", ""))
    folder = tmp_path / "scene"
    folder.mkdir()
    _, wrong = kind(hostile.Scene(folder, path), Random(1))  # noqa: S311 - by a seed
    assert " took a registry " in wrong[0]
