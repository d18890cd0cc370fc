"""One fault again: ``python -m tests.torture.injected io SEED ITEM``, as the line of a violation says it."""

from __future__ import annotations

import sys

from tests.torture.injected.parts import part


def main() -> int:
    """Try it, and print what is broken."""
    mode, seed, item = sys.argv[1:4]
    tally = part(mode, int(seed), 0, item)
    for line in [
        *tally.violations,
        f"{len(tally.violations)} violations in {tally.tried} faults: {dict(tally.events)}",
    ]:
        print(line)  # noqa: T201 - a command that prints what it found
    return int(bool(tally.violations))


if __name__ == "__main__":
    sys.exit(main())
