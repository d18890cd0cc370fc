"""A mutant and its killer: run in a copy of the tree that has it, and in one that lacks the other barriers only."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.mutants.mutant import mutated

if TYPE_CHECKING:
    from tests.mutants.mutant import Mutant, Patch

__all__ = ["Verdict", "judge", "killed"]

PATIENCE_S: Final = 300.0  # for a mutant that hangs, which counts as alive
PASSED: Final = 0  # as pytest ends
FAILED: Final = 1

# No killer needs a plugin, and to load all that are installed takes longer than most killers do.
ENVIRONMENT: Final = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}

_FAILED_TEST: Final = re.compile(r"^FAILED (\S+)", re.MULTILINE)

# Of what was run without a mutant: many have the same killer and the same barriers away.
_content: dict[tuple[str, tuple[Patch, ...]], tuple[bool, str]] = {}
_alone: dict[tuple[str, tuple[Patch, ...]], threading.Lock] = {}


class Verdict(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    is_content: bool  # the killer, where only the other barriers are away
    is_killed: bool
    killed_by: str  # the very test that failed
    seconds: float  # until it failed
    output: str

    @property
    def is_well(self) -> bool:
        """Whether it was killed, by a test that passes without it."""
        return self.is_content and self.is_killed


def judge(mutant: Mutant) -> Verdict:
    """Run the mutant's killer with it and without it."""
    is_content, output = _is_content(mutant)
    begun = time.monotonic()
    killed_by, broken_output = killed(mutant)
    seconds = time.monotonic() - begun
    return Verdict(mutant, is_content, bool(killed_by), killed_by, seconds, output if not is_content else broken_output)


def killed(mutant: Mutant) -> tuple[str, str]:
    """The very test that failed with it, or an empty text; and what was said."""
    code, output = _run(mutant, is_broken=True)
    failed = _FAILED_TEST.search(output)
    return failed[1] if code == FAILED and failed else "", output


def _is_content(mutant: Mutant) -> tuple[bool, str]:
    key = (mutant.killer or "", mutant.without)
    with _alone.setdefault(key, threading.Lock()):
        if key not in _content:
            code, output = _run(mutant, is_broken=False)
            _content[key] = (code == PASSED, output)
        return _content[key]


def _run(mutant: Mutant, *, is_broken: bool) -> tuple[int, str]:
    """How pytest ended, and what it said. An error in collecting a test is no failure of it."""
    assert mutant.killer
    # A file, not a pipe: a command that a killer leaves behind would hold the pipe open, and wait for ever. Temporary
    # files of its own: runs that clear up a folder that they share may end in an error of pytest's, telling nothing.
    with mutated(mutant, is_broken=is_broken) as folder, tempfile.TemporaryFile() as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.killer],
            cwd=folder,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(folder), "PYTEST_DEBUG_TEMPROOT": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            run.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            output.write(b"it hangs")
        finally:
            with contextlib.suppress(ProcessLookupError):  # it, where it hangs, and whatever it has left behind
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        output.seek(0)
        return run.returncode, output.read().decode("utf-8", "replace")
