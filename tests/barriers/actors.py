"""Two processes at one file: one of them stops at a named fault point, and the other does what it should not."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.processes import ROOT, Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["another", "orphaned", "stopped"]

# What both begin with. ``told`` says how a call ended; a process that ends without clean-up leaves its files alone.
HEAD = """
from idemreg import Clock, IdemregError, Registry, TaskUnknownError, faults
path, point = sys.argv[1:3]
class Later(Clock):
    def boot_id(self): return "a later boot"
def told(act):
    try: act()
    except IdemregError as error: say(error.code)
    else: say("done")
def job(): say("entered"); wait()
def drop_posix_locks():
    for name in (path, path + "-shm", path + "-lock"): os.close(os.open(name, os.O_RDONLY))
def stop(): faults.disarm(); say("stopped"); wait()
def leave(): os.kill(os.getpid(), signal.SIGKILL)
"""

BUSY_S = 0.05


@contextmanager
def stopped(path: Path, source: str, point: str = "") -> Iterator[Script]:
    """A process that has come to ``point``, or says "stopped" by itself. `go` lets it go on."""
    with Script(HEAD + source, path, point) as script:
        script.expect("stopped")
        yield script


def another(path: Path, act: str, *, options: str = "") -> str:
    """What another process is told that does ``act`` now: "done", or the code of its error."""
    source = f"""
registry, kept = Registry(path, durability="normal", busy_timeout={BUSY_S}{options}), []
told(lambda: {act})
leave()
"""
    with Script(HEAD + source, path, "") as script:
        answer = script.line()
        script.end()
        return answer


@contextmanager
def orphaned(path: Path, gate: Path, begin: str = "pass") -> Iterator[None]:
    """A command of ``idemreg run`` for "t" that does ``begin`` in Python and waits, its wrapper killed."""
    os.mkfifo(gate)
    command = f"import os; {begin}; print('on', flush=True); open({str(gate)!r}).read()"
    words = ["--db", str(path), "run", "t", "--on-crash", "rerun", "--", sys.executable, "-c", command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "idemreg", *words], stdout=subprocess.PIPE, env=environment, cwd=ROOT
    ) as wrapper:
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == b"on\n"
        wrapper.kill()
        wrapper.wait()
        try:
            yield
        finally:
            gate.write_text("go")
