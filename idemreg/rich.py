"""Rich types of the standard library in the tagged JSON; see `idemreg.tagged` for the format."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RefusedError", "kind_name", "rich_taggers", "unzone"]


class RefusedError(Exception):
    """A value that has no tagged form; ``path`` leads to it, innermost step first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []

    def tell(self) -> str:
        """The reason, and where in the value."""
        where = "".join(reversed(self.path)).removeprefix(".")
        return f"{where}: {self}" if where else str(self)


def kind_name(kind: type) -> str:
    """The type as an error names it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


@functools.cache
def rich_taggers() -> dict[type, Callable[[Any], list[Any]]]:
    """How types of the standard library are tagged; built at the first value that needs it, for their imports cost."""
    from datetime import date, datetime, time, timedelta  # noqa: PLC0415
    from decimal import Context, Decimal  # noqa: PLC0415
    from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath  # noqa: PLC0415
    from uuid import UUID  # noqa: PLC0415

    in_capitals = Context(capitals=1).to_sci_string  # str() follows the thread's own context
    return {
        Decimal: lambda value: ["decimal", in_capitals(value)],
        UUID: lambda value: ["uuid", str(value)],
        date: lambda value: ["date", value.isoformat()],
        time: lambda value: ["time", *_wall_time(value)],
        datetime: lambda value: ["datetime", *_wall_time(value)],
        timedelta: lambda value: ["timedelta", value.days, value.seconds, value.microseconds],
        PurePosixPath: lambda value: ["path", "pure-posix", str(value)],
        PureWindowsPath: lambda value: ["path", "pure-windows", str(value)],
        PosixPath: lambda value: ["path", "posix", str(value)],
        WindowsPath: lambda value: ["path", "windows", str(value)],
    }


def _wall_time(value: Any) -> tuple[str, int, str | float | None]:  # noqa: ANN401 - a time or datetime
    return value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(value)


def _zone(value: Any) -> str | float | None:  # noqa: ANN401 - a time or datetime
    from datetime import timezone  # noqa: PLC0415

    zone: Any = value.tzinfo
    if zone is None:
        return None
    if type(zone) is timezone:
        seconds = zone.utcoffset(None).total_seconds()
        return int(seconds) if seconds.is_integer() else seconds
    key = getattr(zone, "key", None)
    if type(zone).__name__ == "ZoneInfo" and type(key) is str:
        return key
    msg = f"the time zone {kind_name(type(zone))} has no canonical form; use datetime.timezone or zoneinfo.ZoneInfo"
    raise RefusedError(msg)


def unzone(zone: Any) -> Any:  # noqa: ANN401 - a tzinfo or None
    """The time zone of its stored form; ValueError or LookupError where it is none."""
    from datetime import timedelta, timezone  # noqa: PLC0415

    if zone is None:
        return None
    if isinstance(zone, str):
        from zoneinfo import ZoneInfo  # noqa: PLC0415

        return ZoneInfo(zone)  # its errors are ValueErrors and KeyErrors; the key is checked against escapes there
    return timezone(timedelta(seconds=zone))
