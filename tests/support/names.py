"""Names of parametrised tests: the same in every process, so that several can share the tests among them."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """The value in ASCII, without the address that Python's own `repr` gives an object."""
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(value))
