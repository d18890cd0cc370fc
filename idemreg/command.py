"""A child process under a claim: any command, run once.

The command is an owner of its own. It inherits an open lock on a byte of the lock file, so that its task stays owned
when this wrapper is killed and the command goes on as an orphan; without that, killing the wrapper gave overlapping
executions. Its success is then recorded by nobody: once it ends, the task is ``unknown`` and needs its verify command.

Its output passes through live, on two pipes, and the last 64 KiB are kept as the result. Signals that reach the wrapper
are passed on. A command that a signal ended was interrupted, and its crash policy decides; any other exit code but 0
is a failure.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from idemreg import faults
from idemreg.acquiring import acquire
from idemreg.child import Child, Descriptors, pump, replay_output, spawn
from idemreg.clock import Clock
from idemreg.codec import load_result, store_result
from idemreg.ends import crash_end
from idemreg.errors import CommandNotExecutableError, CommandNotFoundError, TaskFailedError, TaskUnknownError
from idemreg.model import Outcome, Status, Verdict
from idemreg.options import CallOptions, CommonOptions, Verified
from idemreg.output import KEPT_BYTES, Output, stored_output
from idemreg.request import wanted
from idemreg.signals import SIGNAL_EXIT, Inbox, Signals
from idemreg.slots import slot_of
from idemreg.store import End
from idemreg.tagged import canonical
from idemreg.walk import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Unpack

    from idemreg.child import Sink
    from idemreg.claim import Claim, Terms
    from idemreg.errors import IdemregError
    from idemreg.model import Task, Wanted
    from idemreg.registry import Registry
    from idemreg.stopping import Limited, Stopping
    from idemreg.store import CommandOwner, Store

__all__ = [
    "DATABASE_VARIABLE",
    "TASK_ID_VARIABLE",
    "TOKEN_VARIABLE",
    "CommandEnd",
    "kept_result",
    "refused",
    "run_command",
    "shown_code",
]

EVIDENCE_CHARACTERS: Final = 4_096
LOST: Final = "its exit code is lost: this process ignores SIGCHLD, or another part of it waits for every child"
BY_SHELL: Final = "/bin/sh"
NOTE_AGAIN_S: Final = 0.1

# By these a step of the command finds its claim. The file has a name of its own: what the command runs beside by
# IDEMREG_DB, or by its default, stays where it is.
TASK_ID_VARIABLE: Final = "IDEMREG_TASK_ID"
TOKEN_VARIABLE: Final = "IDEMREG_TOKEN"  # noqa: S105 - a fencing token is no secret
DATABASE_VARIABLE: Final = "IDEMREG_CLAIM_DB"


class CommandEnd(NamedTuple):
    """How a command's task ended.

    ``exit_code`` is the command's own, or 128+n where signal n killed it, or 76 where another part of this process took
    it (a handler of SIGCHLD that waits for every child): the task is `unknown` then. 124 where its time was over, 75
    where its lease was: it was ended then, and its crash policy decided.
    """

    exit_code: int
    replayed: bool
    task_id: str
    attempt: int
    token: int
    status: Status


class _Streams(NamedTuple):
    """Where a command reads from (None: where we do), writes to, and is kept; the registry's file, for its steps."""

    stdin: int | None
    sink: Sink
    output: Output
    database: str | os.PathLike[str]


class _Codes(NamedTuple):
    """Exit codes with a meaning of their own."""

    unknown_on: Collection[int]
    release_on: Collection[int]


def run_command(
    registry: Registry,
    task_id: str,
    argv: Sequence[str],
    *,
    name: str | None = None,
    payload: object = None,
    counts_argv: bool = True,
    verify: str | None = None,
    unknown_on: Collection[int] = (),
    release_on: Collection[int] = (),
    stdin: int | None = None,
    stdout: int = 1,
    stderr: int = 2,
    sink: Sink | None = None,
    inbox: Inbox | None = None,
    shows_replay: bool = True,
    keeps_output: bool = True,
    admit: Callable[[], None] | None = None,
    **options: Unpack[CommonOptions],
) -> CommandEnd:
    """Run the command once for the task; a duplicate gets the stored output again, and the stored exit code.

    The checksum covers ``argv`` (unless ``counts_argv`` is false) and ``payload``; ``name`` is the command's base name
    unless given. ``verify``: a shell command that tells what became of a dead owner's task, by exit code 0 (happened),
    1 (did not happen) or any other (cannot tell); its output is the evidence. ``unknown_on``,
    ``release_on``: exit codes that leave open whether the effect happened, or put the task back. ``stdin``: a
    descriptor, in place of our own standard input. ``stdout``, ``stderr``: descriptors to write to; or ``sink``.
    ``inbox``: where signals come in, in place of handlers of our own. ``shows_replay``: whether a duplicate writes the
    stored output. ``keeps_output``: whether any is stored. ``admit``: its error puts a claim back.
    """
    signals: contextlib.AbstractContextManager[Inbox] = Signals() if inbox is None else contextlib.nullcontext(inbox)
    target = sink or Descriptors(stdout, stderr)
    with contextlib.closing(target), signals as letters:
        hook = None if verify is None else _verifier(registry.store, verify, letters)
        checked = registry.checked(cast("CallOptions", {**options, "verify": hook}))
        counts = {"argv": [_storable(word) for word in argv], "payload": payload} if counts_argv else payload
        request = wanted(task_id, _name(argv[0]) if name is None else name, canonical(counts), checked)
        owner = registry.store.own_byte()
        try:
            claim = _acquire(registry.terms(checked), request._replace(owner=owner.id), letters)
            if not isinstance(claim, Outcome):
                _admit(claim, admit)
                streams = _Streams(stdin, target, Output(KEPT_BYTES if keeps_output else 0), registry.path)
                return _run(claim, argv, owner, letters, _Codes(unknown_on, release_on), streams)
        finally:
            owner.close()
        letters.check()
    with contextlib.closing(target):  # out of the signals' hands: one ends a write that nobody reads
        return _replay(claim, target if shows_replay else None)


def _name(command: str) -> str:
    """The command's base name as text, whatever bytes it has."""
    return os.fsencode(os.path.basename(command)).decode("utf-8", "backslashreplace")


def _storable(word: str) -> str | bytes:
    """A word of the command line; one that is no UTF-8 counts by its bytes."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return os.fsencode(word)
    return word


class _InterruptibleClock(Clock):
    """A clock whose naps are where a signal ends the wait for a twin: nothing is claimed there, nothing half done."""

    def __init__(self, clock: Clock, inbox: Inbox) -> None:
        self.is_real = clock.is_real
        self._clock = clock
        self._inbox = inbox

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def boot_ms(self) -> int:
        return self._clock.boot_ms()

    def sleep(self, pause: float) -> None:
        self._inbox.check()
        self._clock.sleep(pause)


def _acquire(terms: Terms, request: Wanted, inbox: Inbox) -> Claim | Outcome[Any]:
    """Claim, or the outcome to be replayed. A failure that a command left behind is replayed as well."""
    terms = terms._replace(clock=_InterruptibleClock(terms.clock, inbox))
    try:
        return cast("Claim | Outcome[Any]", drive(acquire(terms, request)))
    except TaskUnknownError:
        inbox.check()  # the verify command was interrupted: that is why nobody knows
        raise
    except TaskFailedError as error:
        task = error.task
        if task is None or task.result is None:
            raise
        stored = load_result(task.result, None)
        return Outcome(task.task_id, task.status, stored, replayed=True, attempt=task.attempt, token=task.token)


def _replay(outcome: Outcome[Any], sink: Sink | None) -> CommandEnd:
    exit_code = 0 if outcome.status is Status.SUCCEEDED else 1
    if (stored := stored_output(outcome.result)) is not None:
        if sink is not None:
            replay_output(stored.pieces, sink)
        exit_code = stored.exit_code
    return CommandEnd(exit_code, True, outcome.task_id, outcome.attempt, outcome.token, outcome.status)  # noqa: FBT003


def _run(
    claim: Claim,
    argv: Sequence[str],
    owner: CommandOwner,
    inbox: Inbox,
    codes: _Codes,
    streams: _Streams,
) -> CommandEnd:
    output, problem, stopping = streams.output, None, None
    child = _spawn(claim, argv, owner, inbox, streams)
    with contextlib.ExitStack() as stack:
        try:
            if claim.options.limits is not None:
                stopping = stack.enter_context(_stopping(claim, child))
            inbox.pass_to(child)
            faults.point("command.spawned")
            pump(child, output, streams.sink, _Noting(owner, child.pid, claim.terms.clock))
        except BaseException as error:  # noqa: BLE001 - it goes on its way when the claim has its end
            problem = error
            child.close_pipes()  # a command that fills them would never end
        try:
            code = child.wait()  # the claim must not end before its command has; what it was, it was in spite of us
        finally:
            inbox.ended()
    faults.point("command.ended")
    end = _record(claim, code, output, codes, None if stopping is None else stopping.why)
    if problem is not None:
        raise problem
    return end


class _Noting:
    """Notes which process runs the command, beside its output, which must not wait for whoever has the registry."""

    def __init__(self, owner: CommandOwner, pid: int, clock: Clock) -> None:
        self._owner = owner
        self._pid = pid
        self._clock = clock
        self._due: float | None = clock.monotonic()

    def __call__(self) -> float | None:
        if self._due is not None and self._clock.monotonic() >= self._due:
            is_done = self._owner.note_process(self._pid)
            self._due = None if is_done else self._clock.monotonic() + NOTE_AGAIN_S
        return None if self._due is None else max(self._due - self._clock.monotonic(), 0)


def _stopping(claim: Claim, child: Child) -> Stopping:
    from idemreg.stopping import Stopping  # noqa: PLC0415 - for commands with limits

    return Stopping(cast("Limited", claim), child)


def _record(
    claim: Claim, code: int | None, output: Output, codes: _Codes, stopped: IdemregError | None = None
) -> CommandEnd:
    """Store what the command's return code makes of its task. One that was ``stopped`` has that error's exit code."""
    exit_code = shown_code(code) if stopped is None else stopped.exit_code
    result = kept_result(exit_code, output)
    status = Status.SUCCEEDED
    if stopped is not None:
        end = crash_end(claim.grant, claim.options, f"{stopped.message}: the command was ended")
        end = end._replace(result=store_result(result, None))
        status = end.status
        claim.end(end, result)
    elif code == 0:
        claim.succeed(result)
    else:
        end = _bad_end(claim, code, codes, result)
        status = end.status
        claim.end(end, result)
    return CommandEnd(exit_code, False, claim.task_id, claim.attempt, claim.token, status)  # noqa: FBT003


def shown_code(code: int | None) -> int:
    """The exit code to tell of: 128+n for signal n, and 76 where it is lost."""
    return TaskUnknownError.exit_code if code is None else code if code >= 0 else SIGNAL_EXIT - code


def kept_result(exit_code: int, output: Output) -> dict[str, Any]:
    """What is stored of a command."""
    return {"exit_code": exit_code, "output": output.kept(), "truncated": output.is_truncated}


def _spawn(claim: Claim, argv: Sequence[str], owner: CommandOwner, inbox: Inbox, streams: _Streams) -> Child:
    """Start the command; where its execution was refused, nothing ran, and the task is put back.

    So it is where a signal asked to end before. One that comes from now on is the command's.
    """
    environment = os.environ | _variables(claim.task_id, claim.attempt, claim.token, claim.downstream_key)
    environment |= {DATABASE_VARIABLE: os.path.abspath(streams.database)}
    if inbox.asked is not None:
        _put_back(claim)
        inbox.check()
    try:
        return spawn(argv, environment, owner.fd, streams.stdin)
    except (OSError, ValueError) as error:  # of exec, or of words that no command line can hold
        _put_back(claim)
        raise refused(argv[0], error, claim.task_id) from error


def refused(command: str, error: OSError | ValueError, task_id: str) -> IdemregError:
    """The error of a command whose execution was refused: nothing ran."""
    if isinstance(error, FileNotFoundError) and not _exists(command):
        return CommandNotFoundError(f"no such command: {command}", task_id=task_id)
    reason = getattr(error, "strerror", None) or error
    hint = "Raise the limit of open files (`ulimit -n`)." if getattr(error, "errno", 0) == errno.EMFILE else None
    return CommandNotExecutableError(f"cannot execute {command}: {reason}", task_id=task_id, hint=hint)


def _admit(claim: Claim, admit: Callable[[], None] | None) -> None:
    try:
        if admit is not None:
            admit()
    except BaseException:
        _put_back(claim)
        raise


def _put_back(claim: Claim) -> None:
    claim.end(End.release(claim.grant, durable=claim.options.durable, nothing_ran=True))


def _exists(command: str) -> bool:
    """Whether the file is there: then what was not found is the interpreter that its first line names."""
    return os.path.lexists(command) if os.sep in command else shutil.which(command) is not None


def _variables(task_id: str, attempt: int, token: int, downstream_key: str) -> dict[str, str]:
    variables = {
        TASK_ID_VARIABLE: task_id,
        "IDEMREG_ATTEMPT": str(attempt),
        TOKEN_VARIABLE: str(token),
        "IDEMREG_DOWNSTREAM_KEY": downstream_key,
    }
    if slot_of(task_id) is not None:
        variables["IDEMREG_SLOT"] = task_id.rpartition("@")[2]
    return variables


def _bad_end(claim: Claim, code: int | None, codes: _Codes, result: dict[str, Any]) -> End:
    """The end of a command that did not succeed, or of which nobody knows; its output is kept for people."""
    if code in codes.release_on:
        return End.release(claim.grant, durable=claim.options.durable)
    if code is not None and code < 0:
        end = crash_end(claim.grant, claim.options, f"killed by signal {-code}")
    else:
        status = Status.UNKNOWN if code is None or code in codes.unknown_on else Status.FAILED
        grant = claim.grant
        error = f"the command ended; {LOST}" if code is None else f"exit code {code}"
        end = End(
            grant.task_id, grant.token, grant.owner, status, grant.attempt, error=error, durable=claim.options.durable
        )
    return end._replace(result=store_result(result, None))  # `Output` bounds it


def _verifier(store: Store, command: str, inbox: Inbox) -> Callable[[Task], Verified]:
    def verify(task: Task) -> Verified:
        variables = _variables(task.task_id, task.attempt, task.token, store.downstream_key(task.task_id))
        process = subprocess.Popen(  # noqa: S603 - the caller's own command
            [BY_SHELL, "-c", command],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        child = Child(process)
        inbox.pass_to(child)
        try:
            with cast("IO[bytes]", process.stdout) as stdout:
                written = stdout.read()
        finally:
            code = child.wait()
            inbox.ended()
        verdicts = {0: Verdict.HAPPENED, 1: Verdict.DID_NOT_HAPPEN}
        evidence = written[-EVIDENCE_CHARACTERS:].decode("utf-8", "replace").strip()
        if code is None:
            evidence = f"the verify command ended; {LOST}\n{evidence}".strip()
        return Verified(
            Verdict.CANNOT_TELL if code is None else verdicts.get(code, Verdict.CANNOT_TELL),
            evidence=evidence or f"verify command exited with {code}",
        )

    return verify
