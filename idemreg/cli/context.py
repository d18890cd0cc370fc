"""What every command shares: which file, JSON or not, and a help text with examples and the fields of its JSON."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from idemreg.cli.text import escape
from idemreg.errors import StorePathError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from idemreg.keyed import ErrorDetail
    from idemreg.operations import Operations
    from idemreg.registry import Registry

__all__ = ["Command", "HintedUsageError", "Settings", "common_options", "login_name", "settings"]

F = TypeVar("F", bound="Callable[..., Any]")

DB_VARIABLE: Final = "IDEMREG_DB"
UNSAFE_PATH_VARIABLE: Final = "IDEMREG_UNSAFE_PATH"
KEY_VARIABLE: Final = "IDEMREG_CHECKSUM_KEY"
MAX_KEY_BYTES: Final = 4_096
KEY_FILE_NAME: Final = "idemreg.key"
NEW_KEY: Final = f"head -c 32 /dev/urandom | base64 >{KEY_FILE_NAME}"
FOLDER_MODE: Final = 0o700  # what a job printed may be secret

EXISTING_ONLY: Final = "idemreg init"


class HintedUsageError(click.UsageError):
    """A usage error that knows what to write instead."""

    def __init__(self, message: str, hint: str, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.hint: Final = hint


class Settings:
    """What the options that every command shares have said so far; the same object for the group and its command."""

    def __init__(self) -> None:
        self.db: str | None = None
        self.create = True
        self.json = False
        self.unsafe_path = _is_unsafe_path_set()
        self.key_file: str | None = None

    def path(self) -> str:
        """The registry's file: --db, else IDEMREG_DB (empty counts as unset), else the user's state folder."""
        if self.db == "":
            msg = "--db is empty"
            hint = "Name a file. Is the variable that you gave unset?"  # another registry would run every job again
            raise StorePathError(msg, hint=hint)
        return self.db or os.environ.get(DB_VARIABLE) or os.path.join(_state_folder(), "idemreg", "jobs.db")

    def existing(self) -> Operations:
        """The registry, opened; `StorePathError` where there is none yet. For the commands that only look or settle.

        Where its lock file is still there it has vanished, and whoever opens it says so.
        """
        path = self.path()
        if _is_missing(path) and not os.path.exists(f"{os.path.realpath(path)}-lock"):
            msg = f"there is no registry at {path}"
            raise StorePathError(msg, hint=f"Create it first: `{EXISTING_ONLY}`, or name another file with --db.")
        from idemreg.operations import Operations  # noqa: PLC0415 - help and usage errors need none

        return Operations(path, create=False, unsafe_path=self.unsafe_path).open()

    def checksum_key(self) -> bytes | None:
        """The key of --checksum-key-file, else of IDEMREG_CHECKSUM_KEY, which no command finds in its environment.

        Never a word of a command line, which every user may see.
        """
        text = os.environ.pop(KEY_VARIABLE, None)
        if self.key_file is None:
            return os.fsencode(text) if text else None
        # Not waiting for a FIFO's writer, and no more than a key has.
        with os.fdopen(os.open(self.key_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            key = (file.read(MAX_KEY_BYTES + 1) or b"").rstrip(b"\r\n")
        if len(key) > MAX_KEY_BYTES:
            msg = f"{self.key_file} has more than {MAX_KEY_BYTES:,} bytes: it is no key"
            raise HintedUsageError(msg, f"Make one: `{NEW_KEY}`.")
        return key

    def importing(self) -> tuple[Operations, bool]:
        """The registry, and whether its first use creates it. It makes no checksums, so it needs no key."""
        path, is_new = self._path_for_creation()
        from idemreg.operations import Operations  # noqa: PLC0415 - help and usage errors need none

        registry = Operations(path, create=self.create, unsafe_path=self.unsafe_path)
        return registry if is_new else registry.open(), is_new

    def creating(
        self, *, error_detail: ErrorDetail = "traceback", page_checksums: bool = False
    ) -> tuple[Registry, bool]:
        """The registry, opened, and whether this call created it."""
        path, is_new = self._path_for_creation()
        from idemreg.registry import Registry  # noqa: PLC0415 - help and usage errors need none

        key = self.checksum_key()
        try:
            registry = Registry(
                path,
                create=self.create,
                checksum_key=key,
                error_detail=error_detail,
                page_checksums=page_checksums,
                unsafe_path=self.unsafe_path,
            )
        except ValueError as error:
            raise HintedUsageError(str(error), f"Make one: `{NEW_KEY}`.") from None
        return registry.open(), is_new

    def _path_for_creation(self) -> tuple[str, bool]:
        path = self.path()
        is_new = not _has_content(path)
        if is_new and not self.create:
            self.existing()  # says that there is none
        if is_new and path != self.db and path != os.environ.get(DB_VARIABLE):
            _make_folder(os.path.dirname(path))
        return path, is_new

    def announce(self) -> None:
        """Say that a file has come into being: a typing error in --db would otherwise look like a success."""
        with contextlib.suppress(OSError):  # a full disk behind stderr must not keep the job from running
            sys.stderr.write(f"idemreg: created {escape(os.path.abspath(self.path()))}\n")

    def command_prefix(self) -> str:
        """How a command of a hint begins, so that it looks into the same file."""
        forced = " --unsafe-path" if self.unsafe_path and not _is_unsafe_path_set() else ""
        if self.db is None:
            return f"idemreg{forced}"
        import shlex  # noqa: PLC0415 - errors only

        return f"idemreg{forced} --db {shlex.quote(self.db)}"


def settings() -> Settings:
    """The settings of the command that runs."""
    found = click.get_current_context().find_object(Settings)
    assert found is not None  # noqa: S101 - the group made it
    return found


def _is_unsafe_path_set() -> bool:
    return os.environ.get(UNSAFE_PATH_VARIABLE) == "1"


def login_name() -> str:
    """Who is at the keyboard, for people to read later."""
    return os.environ.get("LOGNAME") or os.environ.get("USER") or f"uid {os.getuid()}"


# --- the user's state folder ------------------------------------------------------------------------------------


def _state_folder() -> str:
    folder = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(folder):  # the specification has relative ones ignored
        return folder
    home = os.path.expanduser("~")  # HOME, else the user database; "/" where HOME is empty
    if home == "/" or not os.path.isabs(home) or not os.path.isdir(home):
        msg = "no registry was named, and this user has no home folder to keep one in"
        raise HintedUsageError(msg, f"Name the file: `idemreg --db /path/to/jobs.db ...`, or set {DB_VARIABLE}.")
    return os.path.join(home, ".local", "state")


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # opening it tells why
    return False


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def _make_folder(folder: str) -> None:
    """Make the folder and what leads to it, for this user alone."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for one in reversed(missing):
        try:
            os.mkdir(one, FOLDER_MODE)
        except FileExistsError:
            continue  # another process was faster, or a file is in the way: opening the registry tells
        except OSError as error:
            msg = f"cannot create the folder {one}: {error.strerror}"
            raise StorePathError(msg) from error


# --- options ----------------------------------------------------------------------------------------------------


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:  # noqa: ANN401 - of any option
        if value is not None:
            setattr(ctx.ensure_object(Settings), name, value)

    return callback


_DB: Final = click.option(
    "--db",
    metavar="PATH",
    default=None,
    expose_value=False,
    callback=_remember("db"),
    help="The registry's file; also IDEMREG_DB. Default: ~/.local/state/idemreg/jobs.db",
)
_JSON: Final = click.option(
    "--json",
    is_flag=True,
    default=None,
    expose_value=False,
    callback=_remember("json"),
    help="JSON, one object a line.",
)
_UNSAFE_PATH: Final = click.option(
    "--unsafe-path",
    is_flag=True,
    default=None,
    expose_value=False,
    callback=_remember("unsafe_path"),
    help="Use the file also where others could swap it; also IDEMREG_UNSAFE_PATH=1.",
)
_KEY_FILE: Final = click.option(
    "--checksum-key-file",
    metavar="PATH",
    default=None,
    expose_value=False,
    callback=_remember("key_file"),
    help="Its content is the secret key of the checksums; also IDEMREG_CHECKSUM_KEY, the key itself.",
)
_NO_CREATE: Final = click.option(
    "--no-create",
    is_flag=True,
    flag_value=False,
    default=None,
    expose_value=False,
    callback=_remember("create"),
    help="Fail where the registry's file does not exist yet.",
)


def common_options(*, creates: bool = False) -> Callable[[F], F]:
    """The options that every command takes; the group takes them as well, before the command's name."""

    def decorate(function: F) -> F:
        if creates:
            function = _NO_CREATE(_KEY_FILE(function))
        return _JSON(_DB(_UNSAFE_PATH(function)))

    return decorate


# --- help -------------------------------------------------------------------------------------------------------


class Command(click.Command):
    """A command whose help ends with examples, and with what its JSON says."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - click's own
        examples: Sequence[str],
        fields: Mapping[str, str],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples: Final = examples
        self.fields: Final = fields

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples as they are typed, one a line, and the fields."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  {example}\n")
        with formatter.section("Fields of --json"):
            formatter.write_dl(list(self.fields.items()))
        super().format_epilog(ctx, formatter)
