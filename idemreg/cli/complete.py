"""What a shell offers when it completes a line: the task_ids of the file that the line means.

click brings the scripts for zsh and fish, and completes commands and options. Its script for bash hands over words that
readline has cut at each colon, and a task_id has many; so here is another, which hands over the line.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from idemreg.cli.context import Settings

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

__all__ = ["offer_task_ids", "register_bash"]

# A list for people: who sees so many types another letter.
OFFERED: Final = 50


def offer_task_ids(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Some task_ids that begin so, from --db, IDEMREG_DB or the default. Creates no file, and never fails."""
    from idemreg.sqlite.peeking import task_ids  # noqa: PLC0415 - completion only

    try:
        settings = ctx.find_object(Settings) or Settings()
        path = settings.path()
    except Exception:  # noqa: BLE001 - no home, say: an error would land in the line that is being typed
        return []
    found = task_ids(path, incomplete, OFFERED, unsafe_path=settings.unsafe_path)
    # Without -- before it, a TASK_ID that begins with a dash would be taken as an option.
    is_behind_dashes = "--" in os.environ.get("COMP_WORDS", "").split()
    return [task_id for task_id in found if is_behind_dashes or not task_id.startswith("-")]


# --- bash -------------------------------------------------------------------------------------------------------

_SOURCE: Final = """\
%(complete_func)s() {
    local IFS=$'\\n'
    local completion
    for completion in $(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
            %(complete_var)s=bash_complete "$1" 2>/dev/null); do
        case "${completion%%%%,*}" in
            dir) COMPREPLY=(); compopt -o dirnames ;;
            file) COMPREPLY=(); compopt -o default ;;
            plain) COMPREPLY+=("${completion#*,}") ;;
        esac
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

# What the shell takes as it stands; all else gets a backslash.
_UNSAFE: Final = re.compile(r"([^\w@%+=:,./-])")

# Where readline begins a new word inside an argument, if COMP_WORDBREAKS has it.
_BREAKS: Final = ":=@"

_CURSOR: Final = "\0"  # no line holds one


def register_bash() -> None:
    """Put the script in place of click's."""
    from click.shell_completion import BashComplete, add_completion_class, split_arg_string  # noqa: PLC0415

    class LineComplete(BashComplete):
        """Completion by the line up to the cursor."""

        source_template: ClassVar[str] = _SOURCE
        _head = ""
        _is_quoted = False

        def source(self) -> str:
            return self.source_template % self.source_vars()  # without asking which bash there is: this is for all

        def get_completion_args(self) -> tuple[list[str], str]:
            line = os.environ["COMP_WORDS"]
            words = split_arg_string(line + _CURSOR)
            incomplete = words[-1].rstrip(_CURSOR)
            self._is_quoted = _is_open(line)
            if not self._is_quoted:
                breaks = [incomplete.rfind(one) for one in _BREAKS if one in os.environ.get("COMP_WORDBREAKS", "")]
                self._head = incomplete[: max(breaks, default=-1) + 1]
            return words[1:-1], incomplete

        def format_completion(self, item: CompletionItem[Any]) -> str:
            value = str(item.value).removeprefix(self._head)
            return f"{item.type},{value if self._is_quoted else _quoted(value)}"

    add_completion_class(LineComplete)


def _is_open(line: str) -> bool:
    """Whether the line ends inside quotes, where nothing needs a backslash."""
    import shlex  # noqa: PLC0415 - when the Tab key is pressed

    try:
        shlex.split(line)
    except ValueError as error:
        return "quotation" in str(error)
    return False


def _quoted(value: str) -> str:
    return _UNSAFE.sub(r"\\\1", value)
