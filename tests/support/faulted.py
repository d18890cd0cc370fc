"""A program of a test in which calls of the system fail that it names: for errors that no file can be damaged into."""

from __future__ import annotations

import textwrap

from tests.support.processes import Script
from tests.torture.injected import shim

__all__ = ["FaultedScript"]


class FaultedScript(Script):
    """As `Script`; its first argument is the registry's path, and only calls that concern its folder can fail.

    In the program ``fail(kind, error)`` lets the next call of a kind of `shim.KINDS` fail with that errno. ``number=``:
    which one from now; ``lasting=``: so many from there on. ``hits()`` ends that, and says how many have failed. Needs
    a C compiler: the fixture ``compiler``.
    """

    PRELUDE = Script.PRELUDE + textwrap.dedent("""
        import errno
        from tests.torture.injected import shim
        _fault, _functions = shim.loaded()
        _fault.aim(os.path.dirname(sys.argv[1]), "sync", shim.NEVER, 0, 0)  # knows its files as they are opened
        def fail(kind, error, *, number=1, lasting=1):
            _fault.aim(os.path.dirname(sys.argv[1]), kind, number, error, lasting)
            _fault.armed = 1
        def hits():
            _fault.armed = 0
            return _fault.hits
    """)

    def environment(self) -> dict[str, str]:
        return shim.environment()
