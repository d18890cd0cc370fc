"""One live execution of a task: defects that once broke it, and what keeps them out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from idemreg import Registry, Status, StoreBusyError, faults
from idemreg.options import Options
from idemreg.request import wanted
from idemreg.store import End, Granted, Running
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable


def test_an_interrupted_claim_takes_no_note_of_another_away(open_registry: Callable[..., Registry]) -> None:
    """A thread that gives up its claim leaves another thread's claim of the same task alive."""
    registry = open_registry(busy_timeout=0.5)
    with registry.claim("first"):
        pass  # from now on a claim is one statement
    request = wanted("task", "job", b"{}", Options.of({"on_crash": "rerun"}, "normal"))
    (first,) = registry.store.claim([request])
    assert isinstance(first, Granted)
    held, done = threading.Event(), threading.Event()

    def write_long() -> None:
        with registry.claim("long") as claim, claim.transaction():
            held.set()
            done.wait(PATIENCE_S)

    writer = threading.Thread(target=write_long)
    writer.start()
    assert held.wait(PATIENCE_S)
    with pytest.raises(StoreBusyError):  # looked before the first claim, and waits for the turn in vain
        registry.store.claim([request])
    done.set()
    writer.join()
    (again,) = registry.store.claim([request])
    assert isinstance(again, Running)
    registry.store.finish([End("task", first.token, first.owner, Status.SUCCEEDED, 1, "null", durable=False)])


def test_a_task_is_forgotten_by_one_thread_and_claimed_by_another(registry: Registry) -> None:
    """Who forgets a task lets go of its last claim only, and not of one that another thread is about to make."""
    registry.run("t", lambda: "first")
    forgotten, inserting, let_go = threading.Event(), threading.Event(), threading.Event()

    def wait_for_the_claim() -> None:
        forgotten.set()
        assert inserting.wait(PATIENCE_S)

    def wait_for_the_other() -> None:
        faults.disarm()
        inserting.set()
        assert let_go.wait(PATIENCE_S)

    def forget() -> None:
        registry.forget("t")
        let_go.set()

    faults.arm("forget.committed", wait_for_the_claim)
    faults.arm("claim.in-transaction", wait_for_the_other)
    other = threading.Thread(target=forget)
    other.start()
    assert forgotten.wait(PATIENCE_S)
    assert registry.run("t", lambda: "second").result == "second"
    other.join()
