"""`python -m idemreg` and `idemreg`: both begin here, before anything that takes long is imported."""

from __future__ import annotations

import gc
import signal

__all__ = ["start"]


def start() -> None:
    """Run the command line. Ctrl-C while the imports last ends the process in silence, as in any small tool."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # and not ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays to the end. The collector would walk through it again and again, also at the exit: an
    # eighth of the life of a short command.
    gc.disable()
    from idemreg.cli import main  # noqa: PLC0415 - most of a short command's life

    gc.freeze()
    gc.enable()
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    main()


if __name__ == "__main__":
    start()
