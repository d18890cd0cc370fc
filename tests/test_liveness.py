"""Whether an owner lives, where /proc does not tell: what little the system says is taken for life, never for death."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from idemreg import Clock, Liveness, Registry, TaskRunningError
from idemreg.liveness import OwnerRecord, _namespace
from tests.support.faulted import FaultedScript
from tests.support.processes import Script

# Claims "task", and loses its lock when it is told to.
OWNER = """
from idemreg import Registry
registry = Registry(sys.argv[1], durability="normal")
claim = registry.claim("task", name="job", on_crash="rerun")
say(os.getpid())
wait()
os.close(registry.store._opening.opened().lock_file.fd)
say("dropped")
wait()
"""

# Opens the file while the test of its locks lacks a descriptor, and asks for "task" of the dead; then once more.
UNTRIED = """
from idemreg import Registry, TaskRunningError
from tests.torture.injected.shim import LASTING
fail("duplicate", errno.EMFILE, lasting=LASTING)
registry = Registry(sys.argv[1], durability="normal").open()
try: registry.run("task", lambda: "other", name="job", on_crash="rerun")
except TaskRunningError as error: say(hits(), error.owner.reason)
say(registry.run("task", lambda: "other", name="job", on_crash="rerun").attempt)
"""

# Asks for "task" as soon as nothing under /proc can be read any more.
WITHOUT_PROC = """
from idemreg import Registry, TaskRunningError
from tests.torture.injected.shim import LASTING
registry = Registry(sys.argv[1], durability="normal").open()
say("open")
while wait():
    fail("proc", errno.EIO, lasting=LASTING)
    try: told = registry.run("task", lambda: "other", name="job", on_crash="rerun").attempt
    except TaskRunningError as error: told = error.owner.liveness.value
    say(told, hits() > 0)
"""


@pytest.mark.usefixtures("compiler")
def test_without_proc_the_number_alone_speaks(path: Path) -> None:
    """An owner whose lock is lost counts as there for as long as its number is in use, and no longer."""
    with Script(OWNER, path) as owner, FaultedScript(WITHOUT_PROC, path) as other:
        owner.line()
        other.expect("open")
        owner.go()
        owner.expect("dropped")
        other.go()
        other.expect("cannot tell True")
        owner.kill()
        other.go()
        other.expect("2 False")  # nobody has the number, so nothing else is asked for
    with Registry(path) as registry:
        task = registry.get("task")
        assert task is not None
        assert (task.status.word, task.result) == ("succeeded", '"other"')


@pytest.mark.usefixtures("compiler")
def test_locks_that_could_not_be_tried_are_tried_again(path: Path) -> None:
    """An error as the file was opened is no word on what locks mean here: the dead are found once it is over."""
    with Script(OWNER, path) as owner:
        owner.line()
        owner.kill()
    with FaultedScript(UNTRIED, path) as script:
        script.expect("2 the locks could not be tried: Too many open files")  # at the opening, and for the dead
        script.expect("2")
        assert script.end() == 0


@pytest.mark.usefixtures("compiler")
def test_a_command_that_proc_does_not_show_is_recorded_without_its_name(path: Path) -> None:
    """Its number is enough; its start is unknown, and its name empty, wherever /proc begins to fail."""
    source = """
        from idemreg.clock import Clock
        from idemreg.liveness import OwnerRecord, _proc_is_ours
        from tests.torture.injected.shim import LASTING
        child = os.spawnv(os.P_NOWAIT, "/bin/cat", ["cat", "/dev/stdin"])
        own = OwnerRecord.of_this_process("lock", Clock())
        for is_known in (True, False):
            fail("proc", errno.EIO, lasting=LASTING)
            if not is_known: _proc_is_ours.cache_clear()
            record = own.of_child(child)
            say(hits() > 0, record.pid == child, record.started, [record.command])
        os.kill(child, signal.SIGKILL)
    """
    with FaultedScript(source, path) as script:
        script.expect("True True 0 ['']")
        script.expect("True True 0 ['']")
        assert script.end() == 0


def test_a_process_of_another_user_is_there(path: Path) -> None:
    """The system refuses to signal it, which proves that it exists."""
    source = """
        from idemreg.liveness import _probe_by_signal
        is_root = not os.getuid()
        if is_root: os.setresuid(65_534, 65_534, 0)
        found = _probe_by_signal(1)
        if is_root: os.setresuid(0, 0, 0)
        say(found)
    """
    with Script(source, path) as script:
        script.expect("_ProcessState(is_dead=False, started=0)")
        assert script.end() == 0


def test_a_kernel_without_the_namespaces_has_one(path: Path) -> None:
    """What cannot be told of a namespace is 0, and two owners of which neither can be told share nothing."""
    assert _namespace("of-no-kind") == 0
    assert _namespace("pid") > 0
    with Script(OWNER, path) as owner, Registry(path, durability="normal") as registry:
        owner.line()
        owner.go()
        owner.expect("dropped")
        with pytest.raises(TaskRunningError) as running:
            registry.run("task", lambda: "other", name="job", on_crash="rerun")
        assert running.value.owner is not None
        assert running.value.owner.liveness is Liveness.CANNOT_TELL
        owner.signal(signal.SIGKILL)


def test_this_process_is_recorded_by_its_program(path: Path) -> None:
    """The name of its file, or of the module that runs, and never an argument."""
    assert path.suffix == ".db"
    record = OwnerRecord.of_this_process("lock", Clock())
    assert record.pid == os.getpid()
    assert record.started > 0
    assert "/" not in record.command


NO_DESCRIPTOR = """
import resource
from idemreg import Clock, Registry, StoreError
Registry(sys.argv[1] + "2").run("t", int)  # what is imported late is there
sys.modules["idemreg.clock"]._boot_id.cache_clear()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try:
    Clock().boot_id()
except OSError as error:
    say(type(error).__name__, error.errno)
try:
    Registry(sys.argv[1]).run("t", int)
except StoreError as error:
    say(type(error).__name__)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
say(Clock().boot_id())
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
say(Clock().boot_id())
"""


def test_the_boot_is_no_other_for_want_of_a_descriptor(path: Path) -> None:
    """Whoever took it for another would count those that live as dead; and it is read once in a process."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with Script(NO_DESCRIPTOR, path) as script:
        script.expect(f"OSError {errno.EMFILE}")
        script.expect("StoreError")
        script.expect(boot_id)
        script.expect(boot_id)
        assert script.end() == 0
