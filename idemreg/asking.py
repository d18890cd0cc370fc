"""An answer that is noted by the very call that gets it, for whoever may be interrupted before it reaches him."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ask_into"]


def ask_into(ask: Callable[[Any], Any], what: object, answers: list[Any]) -> Any:  # noqa: ANN401 - whatever it answers
    """Ask. The answer stands in ``answers[0]`` at once, which neither takes memory nor can be interrupted.

    So it is there also where whoever waits for it is interrupted before it reaches him. As a step of a walk it may ask
    a lane, which carries it out with others.
    """
    answers[0] = ask(what)
    return answers[0]
