"""What is imported when it is first asked for, in a process that can open no file any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.processes import Script

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_DESCRIPTORS = """
import resource
from idemreg import Registry, StoreError
registry = Registry(sys.argv[1])
registry.run("first", lambda: 1, name="job")
claim = registry.claim("effects")
for name in ("idemreg.batch", "idemreg.sqlite.effects", "traceback"): sys.modules.pop(name, None)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))

def told(call):
    try: call()
    except StoreError as error: say(error.retryable, "ulimit" in error.hint)

def fails(): raise ValueError("no luck")

told(lambda: registry.claim_many([("a", None)]))
told(lambda: registry.finish_many([(claim, 1)]))
told(lambda: list(registry.consume(["a"], lambda message: 1, task_id=str)))
told(lambda: claim.transaction().__enter__())
try: registry.run("second", fails, name="job")
except ValueError: say(registry.get("second").error)
say(registry.run("third", lambda: 3).result)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
"""


def test_a_call_whose_module_cannot_be_imported_says_so(tmp_path: Path) -> None:
    """Without a descriptor it is a StoreError to try again behind; what needs no module works, also to fail a job."""
    with Script(WITHOUT_DESCRIPTORS, tmp_path / "jobs.db") as script:
        for _ in ("claim_many", "finish_many", "consume", "transaction"):
            script.expect("True True")
        script.expect("ValueError: no luck")
        script.expect("3")
        assert script.end() == 0
