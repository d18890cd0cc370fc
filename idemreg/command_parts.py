"""The parts of a command's run that know no claim: its environment, its exit codes, what is kept, who verifies."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

from idemreg.child import Child, pump
from idemreg.claim_environment import of_claim
from idemreg.errors import ArgumentError, CommandNotExecutableError, CommandNotFoundError, TaskUnknownError
from idemreg.model import Verdict
from idemreg.options import CommonOptions, NoVerdictError, Verified
from idemreg.output import Output
from idemreg.recovery import Kept
from idemreg.signals import SIGNAL_EXIT
from idemreg.tagged import encode_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from idemreg.child import Sink
    from idemreg.errors import IdemregError
    from idemreg.model import Task
    from idemreg.signals import Inbox
    from idemreg.store import Store

__all__ = [
    "LOST",
    "attend",
    "kept_command",
    "kept_result",
    "refused",
    "shown_code",
    "storable",
    "verifier",
]

EVIDENCE_BYTES: Final = 4_096  # the last of what a verify command wrote
LOST: Final = "its exit code is lost: this process ignores SIGCHLD, or another part of it waits for every child"
BY_SHELL: Final = "/bin/sh"

# By these a step of the command finds its claim. The file has a name of its own: what the command runs beside by
# IDEMREG_DB, or by its default, stays where it is.


def shown_code(code: int | None) -> int:
    """The exit code to tell of: 128+n for signal n, and 76 where it is lost."""
    return TaskUnknownError.exit_code if code is None else code if code >= 0 else SIGNAL_EXIT - code


def kept_result(exit_code: int, output: Output) -> dict[str, Any]:
    """What is stored of a command."""
    return {"exit_code": exit_code, "output": output.kept(), "truncated": output.is_truncated}


def refused(command: str, error: OSError | ValueError, task_id: str) -> IdemregError:
    """The error of a command whose execution was refused: nothing ran."""
    if isinstance(error, FileNotFoundError) and not _exists(command):
        return CommandNotFoundError(f"no such command: {command}", task_id=task_id)
    reason = getattr(error, "strerror", None) or error
    hint = "Raise the limit of open files (`ulimit -n`)." if getattr(error, "errno", 0) == errno.EMFILE else None
    return CommandNotExecutableError(f"cannot execute {command}: {reason}", task_id=task_id, hint=hint)


def _exists(command: str) -> bool:
    """Whether the file is there: then what was not found is the interpreter that its first line names."""
    return os.path.lexists(command) if os.sep in command else shutil.which(command) is not None


def storable(word: str) -> str | bytes:
    """A word of the command line; one that is no UTF-8 counts by its bytes."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return os.fsencode(word)
    return word


def kept_command(
    argv: Sequence[str],
    verify: str | None,
    unknown_on: Collection[int],
    release_on: Collection[int],
    options: Mapping[str, Any],
    *,
    keeps_output: bool,
) -> Kept:
    """What is kept of a command for its rerun: its words, its folder, and the options that say how it is run.

    Neither its environment nor its standard input. `ArgumentError` where that has no stored form, or is too large.
    """
    try:
        folder = storable(os.getcwd())
    except FileNotFoundError:
        msg = "the folder that the command would be rerun in is gone"
        raise ArgumentError(msg, hint="Change to a folder that stays, or do without --recover.") from None
    kept = {
        "argv": [storable(word) for word in argv],
        "folder": folder,
        "verify": None if verify is None else storable(verify),
        "unknown_on": sorted(unknown_on),
        "release_on": sorted(release_on),
        "keeps_output": keeps_output,
        "options": {name: options[name] for name in CommonOptions.__annotations__ if name in options},
    }
    return Kept(is_command=True, arguments=encode_arguments(kept))


def verifier(store: Store, command: str, inbox: Inbox) -> Callable[[Task], Verified]:
    """A hook that asks a shell command what became of a dead owner's task."""

    def verify(task: Task) -> Verified:
        inbox.check()
        environment = of_claim(task.task_id, task.attempt, task.token, store.downstream_key(task.task_id))
        output = Output(EVIDENCE_BYTES)
        try:
            process = subprocess.Popen(  # noqa: S603 - the caller's own command
                [BY_SHELL, "-c", command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
            code = attend(Child(process), inbox, output, None)
        except OSError as error:  # no descriptor is left, say
            msg = f"the verify command could not be asked: {error.strerror}"
            raise NoVerdictError(msg) from error
        inbox.check()  # who was asked to end may have ended it in its middle, so that its exit code is no verdict
        return _verified(code, output.tail().decode("utf-8", "replace").strip())

    return verify


def _verified(code: int | None, written: str) -> Verified:
    if code is None:
        return Verified(Verdict.CANNOT_TELL, evidence=f"the verify command ended; {LOST}\n{written}".strip())
    if code < 0:
        msg = f"the verify command was killed by signal {-code}"
        raise NoVerdictError(msg)
    verdicts = {0: Verdict.HAPPENED, 1: Verdict.DID_NOT_HAPPEN}
    evidence = written or f"verify command exited with {code}"
    return Verified(verdicts.get(code, Verdict.CANNOT_TELL), evidence=evidence)


def attend(child: Child, inbox: Inbox, output: Output, sink: Sink | None) -> int | None:
    """Pass its output on, and signals to it, until it ends: its return code, or None where that is lost."""
    try:
        inbox.pass_to(child)
        pump(child, output, sink, _nothing)
    except BaseException:
        child.close_pipes()  # a command that fills them would never end
        raise
    finally:
        try:
            code = child.wait()
        finally:
            inbox.ended()
    return code


def _nothing() -> None:
    """There is nothing to be done beside the output."""
