"""What a store must do for steps: the saved pieces of a job, which a later attempt skips."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from idemreg.store import Lost

__all__ = ["Progress", "Step", "Steps"]


class Step(NamedTuple):
    """A piece of a job that is done, as stored: ``number`` counts the task's, ``token`` is of the claim that saved it.

    ``result`` is the stored tagged JSON, or None where it was lost; ``saved_at`` microseconds by the wall clock.
    """

    name: str
    number: int
    token: int
    saved_at: int
    result: str | None


# Those of several tasks, by task_id; None: there are none.
Steps: TypeAlias = "Mapping[str, Sequence[Step]] | None"


class Progress(Protocol):
    """The half of a `Store` that `idemreg.steps` stands on. A claim is named by its task and its token."""

    def step(self, task_id: str, token: int, name: str, *, durable: bool) -> Step | Lost | None:
        """The step as it was saved, also by an earlier claim of the task; None where it was not.

        What is returned is on the disk, if ``durable``. `Lost` where the claim has ended, or is another's by now.
        `StepError` where it was not saved, and no more can be.
        """

    def save_step(self, task_id: str, token: int, name: str, result: str | None, *, durable: bool) -> Step | Lost:
        """Save the step: a compare-and-set on task, token, owner and `running`. `Lost`: nothing was written.

        ``result``: the stored text, or None for one that is lost; also one for which there is no room any more is.
        `StepError` where the step was saved before.
        """

    def steps(self, task_id: str) -> list[Step]:
        """The steps of the task, in the order in which they were saved."""

    def tasks_with_steps(self, first: str, last: str) -> set[str]:
        """Which of the tasks between these two, both included, have steps."""
