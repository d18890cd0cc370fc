"""Commands are run again with the words, the folder and the options that are kept of them.

A stored command line is executed, as whoever sweeps: so the file must be nobody else's to write, whatever
``unsafe_path`` permits (`owned`). It is no more than that user has run before, of a task whose claim asked for it (a
bit of its row, under the row's seal), and words that are not as they were written are an error of the store.
"""

from __future__ import annotations

import functools
import os
import subprocess
from typing import TYPE_CHECKING, Any

from idemreg import sweeping
from idemreg.child import Descriptors
from idemreg.command import Codes, CommandEnd, Job, Streams, claim_and_run
from idemreg.command_parts import verifier
from idemreg.ends import describe
from idemreg.errors import ArgumentError, RecoveryError
from idemreg.limited import limited
from idemreg.model import OnCrash
from idemreg.options import Options
from idemreg.output import KEPT_BYTES, Output
from idemreg.owned import check_owned
from idemreg.recovery import as_stored
from idemreg.signals import Interrupted
from idemreg.tagged import decode_arguments
from idemreg.walk import drive

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.claim import Terms
    from idemreg.deciding import Outcome, Wanted
    from idemreg.events import Teller
    from idemreg.model import Task
    from idemreg.operations import Operations
    from idemreg.recovery import Kept
    from idemreg.signals import Inbox, Relay
    from idemreg.sweeping import Swept
    from idemreg.walk import Walk

__all__ = ["CommandFailedError", "sweep_commands"]


class CommandFailedError(Exception):
    """A command that was run again ended with another exit code than 0."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def sweep_commands(
    registry: Operations, teller: Teller | None, relay: Relay, tell: Callable[[Swept], object] = lambda _: None
) -> list[Swept]:
    """Rerun the commands of dead owners, and settle all else; see `Registry.sweep`.

    Their output goes to our own, and the signals of ``relay`` to the one that runs; once it has received one that asks
    to end, no other begins.
    """

    def rerun(task: Task, kept: Kept) -> Walk[CommandEnd | Outcome[Any] | None]:
        end: CommandEnd | Outcome[Any] | None = yield (
            functools.partial(_rerun, registry, teller, relay),
            (task, kept),
            None,
        )
        return end

    walk = sweeping.sweep(registry.store, teller, rerun, lambda: relay.received is not None, tell=tell)
    return drive(walk)


def _rerun(
    registry: Operations, teller: Teller | None, relay: Relay, task: Task, kept: Kept
) -> CommandEnd | Outcome[Any] | None:
    if not kept.is_command:
        msg = f"task {task.task_id!r} is a function's"
        raise RecoveryError(msg, task_id=task.task_id, hint="Run `idemreg watch MODULE:REGISTRY` with its registry.")
    check_owned(registry.path, task.task_id)
    words = _words(task, kept)
    with relay.inbox() as inbox:
        try:
            terms, wanted, job = _prepared(registry, teller, inbox, task, kept, words)
        except (LookupError, TypeError, ValueError, ArgumentError) as error:  # of another version, say
            msg = f"what is kept of the command is not what this version keeps: {describe(error, 'message')}"
            raise RecoveryError(msg, task_id=task.task_id) from error
        try:
            end = claim_and_run(terms, wanted, job, inbox)
        except Interrupted:  # before it began
            return None
    return _told(task, end)


def _prepared(
    registry: Operations, teller: Teller | None, inbox: Inbox, task: Task, kept: Kept, words: dict[str, Any]
) -> tuple[Terms, Wanted, Job]:
    """All that its claim takes; an error here is one of what was kept."""
    hook = None if words["verify"] is None else verifier(registry.store, os.fsdecode(words["verify"]), inbox)
    options = Options.of({**words["options"], "verify": hook, "wait": 0}, registry.durability)  # type: ignore[typeddict-item] # as `run_command` was given them
    output = Output(KEPT_BYTES if words["keeps_output"] else 0)
    streams = Streams(subprocess.DEVNULL, Descriptors(1, 2), output, registry.path)
    codes = Codes(frozenset(words["unknown_on"]), frozenset(words["release_on"]))
    job = Job([os.fsdecode(word) for word in words["argv"]], codes, streams, os.fsdecode(words["folder"]))
    wanted = as_stored(task)._replace(
        policy=options.policy, can_verify=hook is not None, durable=options.durable, kept=kept
    )
    return sweeping.following(_terms(registry, options, teller), task), wanted, job


def _told(task: Task, end: CommandEnd | Outcome[Any]) -> CommandEnd | Outcome[Any] | None:
    if not isinstance(end, CommandEnd):
        return end if task.policy.on_crash is OnCrash.VERIFY else None  # somebody else has run it meanwhile
    if end.exit_code:
        raise CommandFailedError(end.exit_code)
    return end


def _terms(registry: Operations, options: Options, teller: Teller | None) -> Terms:
    from idemreg.claim import Terms  # noqa: PLC0415 - as `Registry.terms`

    terms = Terms(registry.store, registry.clock, options, teller)
    return terms if options.limits is None else limited(terms)


def _words(task: Task, kept: Kept) -> dict[str, Any]:
    try:
        words: dict[str, Any] = decode_arguments(kept.arguments)
        folder = os.fsdecode(words["folder"])
    except ArgumentError as error:
        raise RecoveryError(error.message, task_id=task.task_id, hint=error.hint) from error
    except (LookupError, TypeError) as error:
        msg = "what is kept of the command names no folder"
        raise RecoveryError(msg, task_id=task.task_id) from error
    if not os.path.isdir(folder):
        msg = f"the folder {folder!r}, in which the command was run, is gone"
        raise RecoveryError(msg, task_id=task.task_id)
    return words
