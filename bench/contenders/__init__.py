"""Who is measured: each in a room of its own, imported only where it takes part.

`KINDS` says of each how it is used and what a row that it acknowledged survives at a setting. Each is used as its own
documentation recommends for speed; where there is a choice, its room says which was taken and why.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from idemreg.options import Durability

__all__ = ["CRASH", "KINDS", "NO_ROW", "POWER", "READS", "SQLITE", "Contender", "Kind", "Place", "absent", "contender"]

CRASH: Final = "process crash"
POWER: Final = "power cut"
CLIENT: Final = "crash of the client"  # the server holds the rows, in memory
NO_ROW: Final = "— (no row)"  # of a side that stores nothing
READS: Final = "— (reads)"  # of one that looks at rows only


class Place(NamedTuple):
    """Where a contender keeps its rows, and how safe. ``socket``: of the Redis server, where it asked for one."""

    folder: str
    durability: Durability
    socket: str = ""


class Contender(Protocol):
    """One open contender in one process."""

    def call(self, user: int) -> object:
        """Run the job once for this user, or give the result of the earlier run."""

    def close(self) -> None: ...


class Kind(NamedTuple):
    """A contender by its name in the tables.

    ``room``: "module:class" below this package. ``survives``: what its acknowledged rows survive, at each setting that
    it has. ``needs``: modules, each with the distribution that has it. ``uses_redis``: it needs a server.
    """

    name: str
    room: str
    how: str
    survives: dict[Durability, str]
    needs: dict[str, str] = {}  # noqa: RUF012 - never changed
    uses_redis: bool = False


SQLITE: Final[dict[Durability, str]] = {"normal": CRASH, "full": POWER}
REDIS: Final[dict[Durability, str]] = {"normal": CLIENT, "full": POWER}
CLIENT_OF_REDIS: Final = {"redis": "redis", "hiredis": "hiredis"}

KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("by hand", "sqlite_files:Hand", "apsw: select, insert, update; 60 s busy time-out", SQLITE),
        Kind("by hand, queued", "sqlite_files:HandQueued", "the same, a flock around each write", SQLITE),
        Kind("by hand, no look", "sqlite_files:HandUnseen", "insert, update; a duplicate takes the write lock", SQLITE),
        Kind("idemreg", "sqlite_files:Hold", 'decorated, on_crash="hold" (the default)', SQLITE),
        Kind("idemreg, rerun", "sqlite_files:Rerun", 'decorated, on_crash="rerun"', SQLITE),
        Kind("idemreg, no guard", "without:WithoutGuard", "the same, and nobody looks at the files", SQLITE),
        Kind("idemreg, no seals", "without:WithoutSeals", "the same, rows without checksums", SQLITE),
        Kind("idemreg, page checksums", "without:WithPageChecksums", "the same, page_checksums=True", SQLITE),
        Kind("diskcache, memoize", "caches:Memoized", "Cache.memoize", SQLITE, {"diskcache": "diskcache"}),
        Kind("diskcache, add and set", "caches:Added", "Cache.get, add, set", SQLITE, {"diskcache": "diskcache"}),
        Kind("huey", "caches:Huey", "SqliteHuey: get, put_if_empty, put", SQLITE, {"huey": "huey"}),
        Kind("joblib", "caches:Joblib", "Memory.cache", {"normal": CRASH}, {"joblib": "joblib"}),
        Kind("DBOS", "workflows:Dbos", "a workflow on SQLite", {"full": POWER}, {"dbos": "dbos"}),
        Kind("Redis", "servers:SetNx", "SET NX GET, SET", REDIS, CLIENT_OF_REDIS, uses_redis=True),
        Kind(
            "Powertools on Redis",
            "servers:Powertools",
            "idempotent_function",
            REDIS,
            {"aws_lambda_powertools": "aws-lambda-powertools[aws-sdk,redis]", **CLIENT_OF_REDIS},
            uses_redis=True,
        ),
    )
}

REDIS_SERVER: Final = "redis-server"


def absent(name: str) -> str | None:
    """All that keeps the contender from taking part here, and what would help; None where it can."""
    kind, why = KINDS[name], []
    missing = [package for module, package in kind.needs.items() if importlib.util.find_spec(module) is None]
    if missing:
        why.append(f"not installed: {', '.join(missing)} (`make bench-full` installs them into .venv-bench)")
    if kind.uses_redis and shutil.which(REDIS_SERVER) is None:
        why.append(f"there is no {REDIS_SERVER} (Debian: apt install redis-server)")
    return f"{name}: {'; '.join(why)}" if why else None


def contender(name: str, place: Place) -> Contender:
    """Open the contender in this process."""
    module, _, made = KINDS[name].room.partition(":")
    room = importlib.import_module(f"bench.contenders.{module}")
    return cast("Contender", getattr(room, made)(place))
