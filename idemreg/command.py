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
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from idemreg import faults
from idemreg.acquiring import acquire
from idemreg.beside import beside
from idemreg.child import Descriptors, pump, replay_output
from idemreg.claim_environment import DATABASE_VARIABLE, of_claim
from idemreg.clock import Clock
from idemreg.codec import load_result, store_result
from idemreg.command_parts import (
    LOST,
    kept_command,
    kept_result,
    refused,
    shown_code,
    storable,
    verifier,
)
from idemreg.deciding import Outcome
from idemreg.ends import abandon, crash_end, told
from idemreg.errors import TaskFailedError
from idemreg.model import OnCrash, Status
from idemreg.output import KEPT_BYTES, Output, stored_output
from idemreg.request import wanted
from idemreg.signals import Inbox, Signals
from idemreg.starting import Start, spawn
from idemreg.store import End
from idemreg.tagged import canonical
from idemreg.walk import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Unpack

    from idemreg.child import Child, Sink
    from idemreg.claim import Claim, Terms
    from idemreg.deciding import Wanted
    from idemreg.errors import IdemregError
    from idemreg.options import CallOptions, CommonOptions
    from idemreg.registry import Registry
    from idemreg.stopping import Limited, Stopping
    from idemreg.store import CommandOwner

__all__ = ["Codes", "CommandEnd", "Job", "Streams", "claim_and_run", "run_command"]

NOTE_AGAIN_S: Final = 0.1


class CommandEnd(NamedTuple):
    """How a command's task ended.

    ``exit_code`` is the command's own, or 128+n where signal n killed it, or 76 where another part of this process took
    it (a handler of SIGCHLD that waits for every child): the task is `unknown` then. 124 where its time was over, 75
    where its lease was: it was ended then, its crash policy decided, and ``stopped`` says so in words.
    """

    exit_code: int
    replayed: bool
    task_id: str
    attempt: int
    token: int
    status: Status
    stopped: str | None = None


class Streams(NamedTuple):
    """Where a command reads from (None: where we do), writes to, and is kept; the registry's file, for its steps."""

    stdin: int | None
    sink: Sink
    output: Output
    database: str | os.PathLike[str]


class Codes(NamedTuple):
    """Exit codes with a meaning of their own."""

    unknown_on: Collection[int]
    release_on: Collection[int]


class Job(NamedTuple):
    """A command, and how it is run; ``folder``: in place of ours."""

    argv: Sequence[str]
    codes: Codes
    streams: Streams
    folder: str | None = None


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
    recover: bool = False,
    **options: Unpack[CommonOptions],
) -> CommandEnd:
    """Run the command once for the task; a duplicate gets the stored output again, and the stored exit code.

    The checksum covers ``argv`` (unless ``counts_argv`` is false) and ``payload``; ``name`` is the command's base name
    unless given. ``verify``: a shell command that tells what became of a dead owner's task, by exit code 0 (happened),
    1 (did not happen) or any other (cannot tell); its output is the evidence. ``unknown_on``,
    ``release_on``: exit codes that leave open whether the effect happened, or put the task back. ``stdin``: a
    descriptor, in place of our own standard input. ``stdout``, ``stderr``: descriptors to write to; or ``sink``.
    ``inbox``: where signals come in, in place of handlers of our own. ``shows_replay``: whether a duplicate writes the
    stored output. ``keeps_output``: whether any is. ``admit``: its error puts a claim back. ``recover``: keep ``argv``.
    """
    signals: contextlib.AbstractContextManager[Inbox] = Signals() if inbox is None else contextlib.nullcontext(inbox)
    target = sink or Descriptors(stdout, stderr)
    with contextlib.closing(target), signals as letters:
        hook = None if verify is None else verifier(registry.store, verify, letters)
        checked = registry.checked(cast("CallOptions", {**options, "verify": hook}))
        counts = {"argv": [storable(word) for word in argv], "payload": payload} if counts_argv else payload
        request = wanted(task_id, _name(argv[0]) if name is None else name, canonical(counts), checked)
        terms = registry.terms(checked)
        if recover:
            kept = kept_command(argv, verify, unknown_on, release_on, options, keeps_output=keeps_output)
            request, terms = request._replace(kept=kept), beside(terms)
        streams = Streams(stdin, target, Output(KEPT_BYTES if keeps_output else 0), registry.path)
        end = claim_and_run(terms, request, Job(argv, Codes(unknown_on, release_on), streams), letters, admit)
        if isinstance(end, CommandEnd):
            return end
        letters.check()
    with contextlib.closing(target):  # out of the signals' hands: one ends a write that nobody reads
        return _replay(end, target if shows_replay else None)


def claim_and_run(
    terms: Terms, request: Wanted, job: Job, inbox: Inbox, admit: Callable[[], None] | None = None
) -> CommandEnd | Outcome[Any]:
    """Run the command under a claim of its own owner; the outcome that is stored where the task is done."""
    start, claim = Start(), None
    owner = terms.store.own_byte()
    try:
        claim = _acquire(terms, request._replace(owner=owner.id), inbox)
        if isinstance(claim, Outcome):
            return claim
        _admit(claim, admit)
        return _run(claim, job, owner, inbox, start)
    except BaseException as error:
        if claim is not None and not isinstance(claim, Outcome) and claim.is_open:
            _leave(claim, owner, start, error)
        raise
    finally:
        try:
            owner.close()
        except BaseException:  # an interrupt may have come in the middle of it
            owner.close()
            raise


def _leave(claim: Claim, owner: CommandOwner, start: Start, error: BaseException) -> None:
    """An error came in between, so that no end was made: the claim must not stay with an owner that is about to go."""
    child = start.left(error)
    if child is None and not start.is_unclear:
        claim.not_begun()
    elif child is not None and child.has_ended():
        claim.interrupted(error)
    elif child is not None:  # it was waited for, and that was interrupted twice
        claim.settled()
        owner.leave_to(child.pid)
    else:  # it may go on: so nobody runs it again by himself, whatever the policy
        grant = claim.grant._replace(policy=claim.grant.policy._replace(on_crash=OnCrash.HOLD))
        abandon(claim, crash_end(grant, claim.options, told(error, claim.options)))


def _name(command: str) -> str:
    """The command's base name as text, whatever bytes it has."""
    return os.fsencode(os.path.basename(command)).decode("utf-8", "backslashreplace")


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
        got: Claim | Outcome[Any] = drive(acquire(terms, request))
    except TaskFailedError as error:
        task = error.task
        if task is None or task.result is None:
            raise
        stored = load_result(task.result, None)
        return Outcome(task.task_id, task.status, stored, replayed=True, attempt=task.attempt, token=task.token)
    return got


def _replay(outcome: Outcome[Any], sink: Sink | None) -> CommandEnd:
    exit_code = 0 if outcome.status is Status.SUCCEEDED else 1
    if (stored := stored_output(outcome.result)) is not None:
        if sink is not None:
            replay_output(stored.pieces, sink)
        exit_code = stored.exit_code
    return CommandEnd(exit_code, True, outcome.task_id, outcome.attempt, outcome.token, outcome.status)  # noqa: FBT003


def _run(claim: Claim, job: Job, owner: CommandOwner, inbox: Inbox, start: Start) -> CommandEnd:
    output, problem, stopping = job.streams.output, None, None
    with contextlib.ExitStack() as stack:
        try:
            child = _spawn(claim, job, owner, inbox, start)
            if claim.options.limits is not None:
                stopping = stack.enter_context(_stopping(claim, child))
            inbox.pass_to(child)
            faults.point("command.spawned")
            pump(child, output, job.streams.sink, _Noting(owner, child.pid, claim.terms.clock))
        except BaseException as error:
            if (left := start.left(error)) is None:
                raise
            child, problem = left, error  # it goes on its way when the claim has its end
            child.close_pipes()  # a command that fills them would never end
        try:
            code = child.wait()  # the claim must not end before its command has; what it was, it was in spite of us
        except BaseException as error:  # noqa: BLE001 - as above; another one leaves the command to itself
            problem = problem or error
            code = child.wait()
        finally:
            inbox.ended()
    faults.point("command.ended")
    end = _record(claim, code, output, job.codes, None if stopping is None else stopping.why)
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
    claim: Claim, code: int | None, output: Output, codes: Codes, stopped: IdemregError | None = None
) -> CommandEnd:
    """Store what the command's return code makes of its task. One that was ``stopped`` has that error's exit code."""
    exit_code = shown_code(code) if stopped is None else stopped.exit_code
    result = kept_result(exit_code, output)
    status, why = Status.SUCCEEDED, None
    if stopped is not None:
        why = f"{stopped.message}: the command was ended"
        end = crash_end(claim.grant, claim.options, why)
        end = end._replace(result=store_result(result, None))
        status = end.status
        claim.end(end, result)
    elif code == 0:
        claim.succeed(result)
    else:
        end = _bad_end(claim, code, codes, result)
        status = end.status
        claim.end(end, result)
    return CommandEnd(exit_code, False, claim.task_id, claim.attempt, claim.token, status, why)  # noqa: FBT003


def _spawn(claim: Claim, job: Job, owner: CommandOwner, inbox: Inbox, start: Start) -> Child:
    """Start the command; where its execution was refused, nothing ran, and the task is put back.

    So it is where a signal asked to end before. One that comes from now on is the command's.
    """
    environment = of_claim(claim.task_id, claim.attempt, claim.token, claim.downstream_key)
    environment[DATABASE_VARIABLE] = os.path.abspath(job.streams.database)
    if inbox.asked is not None:
        _put_back(claim)
        inbox.check()
    try:
        return spawn(job.argv, environment, owner.fd, job.streams.stdin, job.folder, start)
    except (OSError, ValueError) as error:  # of exec, or of words that no command line can hold
        if start.left(error) is not None or start.is_unclear:  # of a signal's handler
            raise
        _put_back(claim)
        raise refused(job.argv[0], error, claim.task_id) from error


def _admit(claim: Claim, admit: Callable[[], None] | None) -> None:
    try:
        if admit is not None:
            admit()
    except BaseException:
        _put_back(claim)
        raise


def _put_back(claim: Claim) -> None:
    claim.end(End.release(claim.grant, durable=claim.options.durable, nothing_ran=True))


def _bad_end(claim: Claim, code: int | None, codes: Codes, result: dict[str, Any]) -> End:
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
