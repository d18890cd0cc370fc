"""A child process as a step: a piece of a command that runs under a claim of `idemreg run`, done once.

The command's environment names its claim: the task, the token and the file. The token is compared when the step is
looked up and when it is saved, so a command that lost its claim while it went on begins no step, and saves none.

Whoever runs the step is a child of the claim's command, and has inherited the lock by which that command is known to
live. The step's own command inherits it as well: the task stays owned while any of them goes on.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from idemreg.child import Descriptors, replay_output
from idemreg.claim_environment import DATABASE_VARIABLE, TASK_ID_VARIABLE, TOKEN_VARIABLE
from idemreg.codec import load_result, store_result
from idemreg.command_parts import attend, kept_result, refused, shown_code
from idemreg.ends import lost_error
from idemreg.errors import StepError
from idemreg.output import KEPT_BYTES, Output, stored_output
from idemreg.signals import Signals
from idemreg.starting import spawn
from idemreg.steps import check_name
from idemreg.store import Lost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from idemreg.child import Sink
    from idemreg.progress import Progress
    from idemreg.signals import Inbox
    from idemreg.store import Store

__all__ = ["CommandClaim", "StepEnd", "run_step_command"]

OUTSIDE: Final = "Write `idemreg run TASK_ID -- CMD`, where CMD calls `idemreg step NAME -- COMMAND [ARGS]...`."


class CommandClaim(NamedTuple):
    """The claim under which the calling command runs."""

    task_id: str
    token: int
    path: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> CommandClaim:
        """From what `idemreg run` gave the command; `StepError` outside of one."""
        try:
            token = int(environment[TOKEN_VARIABLE])
            return cls(environment[TASK_ID_VARIABLE], token, environment[DATABASE_VARIABLE])
        except (KeyError, ValueError) as error:
            msg = "a step belongs to a command that `idemreg run` has started, and there is none around this one"
            raise StepError(msg, hint=OUTSIDE) from error


class StepEnd(NamedTuple):
    """How a step ended. ``exit_code`` is the command's own, or 128+n where signal n killed it; 0: it is saved."""

    exit_code: int
    replayed: bool


def run_step_command(
    store: Store,
    claim: CommandClaim,
    name: str,
    argv: Sequence[str],
    *,
    durable: bool = True,
    stdout: int = 1,
    stderr: int = 2,
) -> StepEnd:
    """Run the command as a step of the claim, unless it was done before: then its stored output is written again.

    An exit code other than 0 saves nothing. `ClaimLostError` where another owner has the task by now.
    """
    check_name(name)
    progress = cast("Progress", store)  # every store is one
    with contextlib.closing(Descriptors(stdout, stderr)) as sink:
        found = progress.step(claim.task_id, claim.token, name, durable=durable)
        if isinstance(found, Lost):
            raise lost_error(claim.task_id)
        if found is not None:
            return _replay(found.result, sink)
        output = Output(KEPT_BYTES)
        with Signals() as inbox:
            exit_code = _run(argv, claim.task_id, inbox, output, sink)
        if exit_code:
            return StepEnd(exit_code, replayed=False)
        result = store_result(kept_result(exit_code, output), None)  # `Output` bounds it
        if isinstance(progress.save_step(claim.task_id, claim.token, name, result, durable=durable), Lost):
            raise lost_error(claim.task_id)
        return StepEnd(exit_code, replayed=False)


def _replay(result: str | None, sink: Sink) -> StepEnd:
    stored = None if result is None else stored_output(load_result(result, None))
    if stored is not None:  # one without room for it, or of a job in Python, has no output
        replay_output(stored.pieces, sink)
    return StepEnd(0, replayed=True)


def _run(argv: Sequence[str], task_id: str, inbox: Inbox, output: Output, sink: Sink) -> int:
    inbox.check()
    try:
        child = spawn(argv, os.environ, None, None)
    except (OSError, ValueError) as error:
        raise refused(argv[0], error, task_id) from error
    return shown_code(attend(child, inbox, output, sink))
