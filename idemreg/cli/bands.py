"""The bands of the clock check for commands: of the environment, so that all of a machine go by the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from idemreg.cli.context import HintedUsageError
from idemreg.clockcheck.verdict import ClockBands

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["VARIABLES", "bands_of"]

VARIABLES: Final = {
    "extend_from_ms": "IDEMREG_CLOCK_EXTEND_FROM",
    "suspend_from_ms": "IDEMREG_CLOCK_SUSPEND_FROM",
    "extension_ms": "IDEMREG_CLOCK_EXTENSION",
}


def bands_of(given: Mapping[str, float | None]) -> ClockBands:
    """What was given, else what the environment says, else the usual ones; a usage error where they are no bands."""
    values = {name: value for name, value in given.items() if value is not None}
    for name, variable in VARIABLES.items():
        if name not in values and (text := os.environ.get(variable, "")):
            values[name] = _number(variable, text)
    try:
        return ClockBands(**values)
    except ValueError as error:
        named = ", ".join(VARIABLES.values())
        raise HintedUsageError(str(error), f"The options of `idemreg clock`, or {named}, say so.") from None


def _number(variable: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"{variable} is a number of milliseconds, not {text!r}"
        raise HintedUsageError(msg, f"Such as {variable}=50, or none at all.") from None
