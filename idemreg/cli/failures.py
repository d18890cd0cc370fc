"""Errors for people and for programs: one line, one hint, an exit code; never a traceback that nobody asked for."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from idemreg.cli.render import write_json
from idemreg.cli.text import escape
from idemreg.errors import IdemregError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from idemreg.cli.context import Settings
    from idemreg.keyed import ErrorDetail

__all__ = ["FIELDS", "InterruptedJobError", "guarded", "hint_for", "job_error", "report_error", "unknown_hint"]

USAGE: Final = 2
UNEXPECTED: Final = 70  # EX_SOFTWARE
OS_ERROR: Final = 74  # EX_IOERR, as a store error
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141  # as a program that SIGPIPE ended

DEBUG_VARIABLE: Final = "IDEMREG_DEBUG"

FIELDS: Final = {
    "error": "what happened, in one stable word; `usage`, `os`, `interrupted` and `unexpected` are the command line's",
    "message": "the same for people",
    "hint": "what to do next",
    "task_id": "the task it speaks of, or null",
    "retryable": "whether the same call may succeed later with nobody doing anything",
    "exit_code": "the exit code that follows",
    "cause": "the error underneath, or null",
}

# Where the library's hint speaks of Python, the same for the command line.
_HINTS: Final = {
    "argument": "Give text in --payload that is valid Unicode.",
    "unknown": "Find out whether it happened, then `idemreg resolve TASK_ID happened` or `... did-not-happen`.",
    "running": "Call again later, or wait for it with --wait SECONDS; `idemreg show TASK_ID` tells who runs it.",
    "result": "`idemreg show TASK_ID` tells what is stored. The task counts as succeeded.",
    "store-busy": "Another process holds the write lock; call again.",
    "timeout": "`idemreg show TASK_ID` tells what became of it. Raise --timeout where it needs longer.",
}

_OS_HINTS: Final = {
    errno.ENOENT: "Is the name right?",
    errno.EBADF: "Where nobody wants the output, send it to /dev/null.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
}

# The commands that hints name. Each is made to look into the file that this call looked into.
_NAMED: Final = (
    *("show", "list", "stats", "resolve", "retry", "forget", "init"),
    *("purge", "backup", "export", "import", "checkpoint", "doctor", "clock", "schedule", "audit", "watch"),
)


class InterruptedJobError(KeyboardInterrupt):
    """Ctrl-C in a job that nobody may run again by itself."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"interrupted: {task_id} is unknown, for its job was in the middle")
        self.task_id = task_id


def guarded(work: Callable[[], Any], settings: Settings) -> int:
    """Do the work, and give the exit code; whatever it raises becomes a line on stderr."""
    try:
        return _guarded(work, settings)
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            _let_go_of(sys.stderr)  # what Python cannot flush at its exit would be its exit code


def _guarded(work: Callable[[], Any], settings: Settings) -> int:
    try:
        code = _exit_code_of(work)
        sys.stdout.flush()  # what cannot be written is told here, and not by Python at its exit
        return code
    except BrokenPipeError:
        _let_go_of(sys.stdout)
        return BROKEN_PIPE
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.message}\n")
        return USAGE
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, OSError):
            _let_go_of(sys.stdout)
        return report_error(error, settings)


def report_error(error: BaseException, settings: Settings) -> int:
    """Write it on stderr, and give its exit code."""
    report = describe(error, settings)
    if report["error"] == "unexpected" and os.environ.get(DEBUG_VARIABLE):
        _write_traceback(error)
    _write(report, as_json=settings.json)
    return int(report["exit_code"])


def job_error(error: BaseException, task_id: str, detail: ErrorDetail) -> str:
    """What is told of an error that came out of the task: no more of a job's own than its registry stores of it.

    Ours of this very task are told in full; one of another was raised by the job.
    """
    is_ours = isinstance(error, IdemregError) and error.task_id == task_id
    return type(error).__name__ if detail == "type" and not is_ours else _name_and_message(error)


def _exit_code_of(work: Callable[[], Any]) -> int:
    try:
        code = work()
    except click.exceptions.Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else 0


def describe(error: BaseException, settings: Settings) -> dict[str, Any]:
    """The fields of an error; `FIELDS` tells what they mean."""
    if isinstance(error, IdemregError):
        cause = error.__cause__ if isinstance(error, StoreError) else None
        return _report(
            error.code,
            error.message,
            hint_for(error, settings),
            error.exit_code,
            task_id=error.task_id,
            retryable=error.retryable,
            cause=None if cause is None else _name_and_message(cause),
        )
    if isinstance(error, click.ClickException):
        return _report("usage", error.format_message().rstrip("."), _usage_hint(error), USAGE)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _interruption(error, settings)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        hint = _OS_HINTS.get(error.errno or 0, "Check the disk and the permissions.")
        return _report("os", f"{error.strerror or error}{where}", hint, OS_ERROR)
    hint = f"This is a bug of idemreg. {DEBUG_VARIABLE}=1 in the environment shows where it comes from."
    return _report("unexpected", f"unexpected {_name_and_message(error)}", hint, UNEXPECTED)


def _interruption(error: BaseException, settings: Settings) -> dict[str, Any]:
    message = str(error) or "interrupted"
    if not isinstance(error, InterruptedJobError):
        return _report("interrupted", message, "", INTERRUPTED, retryable=True)
    return _report("interrupted", message, unknown_hint(error.task_id, settings), INTERRUPTED, task_id=error.task_id)


def _report(
    code: str,
    message: str,
    hint: str,
    exit_code: int,
    *,
    task_id: str | None = None,
    retryable: bool = False,
    cause: str | None = None,
) -> dict[str, Any]:
    values = (code, message, hint, task_id, retryable, exit_code, cause)
    return dict(zip(FIELDS, values, strict=True))


def hint_for(error: IdemregError, settings: Settings) -> str:
    """The error's hint as a command that can be typed: the task's real name, the same file."""
    hint = error.hint
    if hint == type(error).hint:
        hint = _HINTS.get(error.code, hint)
    return concrete(hint, error.task_id, settings)


def unknown_hint(task_id: str, settings: Settings) -> str:
    """What to do about a task that is unknown."""
    return concrete(_HINTS["unknown"], task_id, settings)


def concrete(hint: str, task_id: str | None, settings: Settings) -> str:
    """The hint with the task's real name, quoted for a shell, and the file that this call looked into."""
    for name in _NAMED:
        hint = hint.replace(f"idemreg {name}", f"{settings.command_prefix()} {name}")
    if task_id is None:
        return hint
    import shlex  # noqa: PLC0415 - errors only

    quoted = shlex.quote(task_id)
    return hint.replace("TASK_ID", f"-- {quoted}" if task_id.startswith("-") else quoted)


def _usage_hint(error: click.ClickException) -> str:
    own = getattr(error, "hint", None)
    if isinstance(own, str):
        return own
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return "`idemreg --help` tells more."
    pieces = " ".join(ctx.command.collect_usage_pieces(ctx))
    return f"{ctx.command_path} {pieces}  ({ctx.command_path} --help tells more)"


def _name_and_message(error: BaseException) -> str:
    from idemreg.ends import message_of  # noqa: PLC0415 - errors only

    return f"{type(error).__name__}: {message_of(error)}".removesuffix(": ")


def _write(report: dict[str, Any], *, as_json: bool) -> None:
    """On stderr. Where even that is closed, the exit code is all there is to say."""
    try:
        if as_json:
            write_json(report, to=sys.stderr)
            return
        sys.stderr.write(f"idemreg: {escape(report['message'])}\n")
        if report["cause"]:
            sys.stderr.write(f"  cause: {escape(report['cause'])}\n")
        if report["hint"]:
            sys.stderr.write(f"  hint: {escape(report['hint'])}\n")
    except (OSError, ValueError):
        pass


def _write_traceback(error: BaseException) -> None:
    import traceback  # noqa: PLC0415 - only when asked for

    traceback.print_exception(error)


def _let_go_of(stream: TextIO) -> None:
    """Nobody reads it any more (`idemreg list | head`), or its disk is full: Python must not flush at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    except (OSError, ValueError):
        pass
    finally:
        os.close(nowhere)
