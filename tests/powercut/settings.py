"""Constants of a worker that make rare things common: named by a scenario, set before anything is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from idemreg.sqlite import syncing, wal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SETTINGS"]


def _settings(of: Any, **constants: float) -> Callable[[], None]:
    def apply() -> None:
        for name, value in constants.items():
            assert hasattr(of, name), name
            setattr(of, name, value)

    return apply


SETTINGS: Final[Mapping[str, Callable[[], None]]] = {
    # Nobody waits for the turn to sync: whoever finds it taken syncs by himself, and publishes nothing.
    "impatient": _settings(syncing, PATIENCE_S=0, PATIENT_SYNCS=0),
    # The -wal is grown by the third sync of a process, and checkpointed by commits every few dozen pages.
    "short wal": _settings(wal, WORKING_BYTES=200_000, SYNCS_BEFORE=3, AUTOCHECKPOINT_PAGES=30),
}
