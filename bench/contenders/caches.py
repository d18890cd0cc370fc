"""Caches and a queue's storage, on the local disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bench.job import DAY, issue_coupon

if TYPE_CHECKING:
    from bench.contenders import Place

__all__ = ["Added", "Huey", "Joblib", "Memoized"]

OFF, NORMAL, FULL = 0, 1, 2  # of SQLite's PRAGMA synchronous


def _cache(place: Place) -> Any:  # noqa: ANN401 - untyped
    import diskcache  # noqa: PLC0415 - only where it takes part

    # Its defaults are its recommendation (WAL, synchronous=NORMAL, memory-mapped); eviction off, as a registry never
    # evicts, and since it is the faster setting.
    safe = FULL if place.durability == "full" else NORMAL
    return diskcache.Cache(place.folder, sqlite_synchronous=safe, eviction_policy="none", cull_limit=0)


class Memoized:
    """The decorator of its tutorial. Two callers at a time may both run the job: it is a cache."""

    def __init__(self, place: Place) -> None:
        self._cache = _cache(place)
        self._job = self._cache.memoize()(issue_coupon)

    def call(self, user: int) -> object:
        return self._job(user, DAY)

    def close(self) -> None:
        self._cache.close()


class Added:
    """`add` stores only where nothing is, so the job is claimed before it runs."""

    def __init__(self, place: Place) -> None:
        self._cache = _cache(place)

    def call(self, user: int) -> object:
        key = f"coupon:{user}:{DAY}"
        found = self._cache.get(key)
        if found is not None:
            return found
        if not self._cache.add(key, "running"):
            raise RuntimeError(key)
        result = issue_coupon(user, DAY)
        self._cache.set(key, result)
        return result

    def close(self) -> None:
        self._cache.close()


class Huey:
    """The storage of results that huey's own locks and results stand on; WAL is its default.

    ``fsync=False`` is its documented setting for speed, and even less than synchronous=NORMAL.
    """

    def __init__(self, place: Place) -> None:
        from huey import SqliteHuey  # noqa: PLC0415 - only where it takes part

        fsync = place.durability == "full"
        self._huey: Any = SqliteHuey(filename=os.path.join(place.folder, "huey.db"), fsync=fsync)

    def call(self, user: int) -> object:
        key = f"coupon:{user}:{DAY}"
        found = self._huey.get(key, peek=True)
        if found is not None:
            return found
        if not self._huey.put_if_empty(key, "running"):
            raise RuntimeError(key)
        result = issue_coupon(user, DAY)
        self._huey.put(key, result)
        return result

    def close(self) -> None:
        self._huey.storage.close()


class Joblib:
    """``mmap_mode`` and compression are for large arrays, which there are none of; the output is switched off."""

    def __init__(self, place: Place) -> None:
        import joblib  # noqa: PLC0415 - only where it takes part

        self._job: Any = joblib.Memory(place.folder, verbose=0).cache(issue_coupon)

    def call(self, user: int) -> object:
        return self._job(user, DAY)

    def close(self) -> None:
        """Nothing is open between calls."""
