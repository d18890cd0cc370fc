"""What is told of errors that have no caller."""

from __future__ import annotations

import threading

import pytest

from idemreg.untold import Untold, tell_hook


class BrokenError(Exception):
    """Of a program: it cannot even say what it is."""

    def __repr__(self) -> str:
        raise LookupError


def test_an_error_that_cannot_say_what_it_is_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its type; and again once something went well."""
    told: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    untold = Untold()
    for _ in range(2):
        untold.tell(BrokenError())
    assert told == [BrokenError]
    untold.forget()
    untold.tell(BrokenError())
    assert told == [BrokenError] * 2


@pytest.mark.parametrize("kind", [OSError, SystemExit])
def test_a_hook_that_raises_is_survived(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that tells has work for others to do."""
    asked: list[object] = []

    def broken(args: threading.ExceptHookArgs) -> None:
        asked.append(args.exc_type)
        raise kind

    monkeypatch.setattr(threading, "excepthook", broken)
    tell_hook(ValueError())
    assert asked == [ValueError]
