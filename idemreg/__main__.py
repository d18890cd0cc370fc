"""`python -m idemreg` is `idemreg`."""

from __future__ import annotations

from idemreg.cli import main

if __name__ == "__main__":
    main()
