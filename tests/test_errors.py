"""The base of all errors: what is given to it, and what it says of itself."""

from __future__ import annotations

import pickle

import pytest

from idemreg.errors import IdemregError, TaskIdError, require


@pytest.mark.parametrize("kind", [IdemregError, TaskIdError])
def test_an_error_carries_what_it_was_given(kind: type[IdemregError]) -> None:
    """Message, task_id and hint, each under its own name; pickled it arrives with all of them."""
    error = kind("it is so", task_id="t", hint="do this")
    assert (error.message, error.task_id, error.hint) == ("it is so", "t", "do this")
    assert str(error) == "it is so"
    assert vars(pickle.loads(pickle.dumps(error))) == {"task_id": "t", "hint": "do this"}  # noqa: S301 - our own


def test_an_error_that_was_given_nothing_has_its_classes_hint() -> None:
    """A hint that is not given is that of the class; no task_id is none. An empty one counts as given."""
    error = TaskIdError("it is so")
    assert (error.task_id, error.hint, vars(error)) == (None, TaskIdError.hint, {})
    assert vars(TaskIdError("it is so", task_id="", hint="")) == {"task_id": "", "hint": ""}


def test_what_is_of_another_kind_is_told_by_what_it_should_be() -> None:
    """A TypeError that names both; what is of the kind passes."""
    require("text", str, "a name is text")
    with pytest.raises(TypeError) as caught:
        require(7, str, "a name is text")
    assert str(caught.value) == "a name is text, not int"
