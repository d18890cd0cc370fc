"""Redis: by two commands, and under Powertools' idempotency. A server of the benchmark's own, on a Unix socket.

A Unix socket and hiredis, the parser in C, are what Redis and its client recommend for speed on one machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any, cast

from bench.contenders import REDIS_SERVER
from bench.job import DAY, issue_coupon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.contenders import Place
    from idemreg.options import Durability

__all__ = ["Powertools", "SetNx", "redis_server"]

PATIENCE_S = 10.0
NAP_S = 0.01


@contextlib.contextmanager
def redis_server(folder: str, durability: Durability) -> Iterator[str]:
    """A server with its data in the folder; gives its socket. "full": each command is synced before its answer."""
    socket = os.path.join(folder, "redis.sock")
    appends = ["--appendonly", "yes", "--appendfsync", "always"] if durability == "full" else ["--appendonly", "no"]
    command = [REDIS_SERVER, "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", "", *appends]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(socket):
            if server.poll() is not None or time.monotonic() > deadline:
                msg = f"the server did not start: {' '.join(command)}"
                raise RuntimeError(msg)
            time.sleep(NAP_S)
        yield socket
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def _answers(socket: str) -> bool:
    import redis  # noqa: PLC0415 - only where it takes part

    try:
        return os.path.exists(socket) and bool(redis.Redis(unix_socket_path=socket).ping())
    except redis.ConnectionError:
        return False


def _client(place: Place) -> Any:  # noqa: ANN401 - the client's own type differs by version
    import redis  # noqa: PLC0415 - only where it takes part

    return redis.Redis(unix_socket_path=place.socket, decode_responses=True)


class SetNx:
    """Claim and look are one command (SET with NX and GET, Redis 7): a duplicate is one round trip, a new task two."""

    def __init__(self, place: Place) -> None:
        self._redis = _client(place)

    def call(self, user: int) -> object:
        key = f"coupon:{user}:{DAY}"
        found = self._redis.set(key, "running", nx=True, get=True)
        if found is not None:
            return json.loads(found)
        result = issue_coupon(user, DAY)
        self._redis.set(key, json.dumps(result))
        return result

    def close(self) -> None:
        self._redis.close()


class _Context:
    """What Lambda hands to a function: how long it may still run, after which a claim counts as lost."""

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 900_000


class Powertools:
    """As its documentation shows. The local cache stays off, its default: a duplicate in another process has none.

    The key is taken from the whole order; no payload is validated, which is the faster setting.
    """

    def __init__(self, place: Place) -> None:
        from aws_lambda_powertools.utilities import idempotency  # noqa: PLC0415 - only where it takes part
        from aws_lambda_powertools.utilities.idempotency.persistence.redis import (  # noqa: PLC0415
            RedisCachePersistenceLayer,
        )

        self._redis = _client(place)
        layer = RedisCachePersistenceLayer(client=self._redis)
        config = idempotency.IdempotencyConfig()
        config.register_lambda_context(cast("Any", _Context()))  # as it recommends; without, it warns at every call
        once: Any = idempotency.idempotent_function(
            data_keyword_argument="order", persistence_store=layer, config=config
        )

        def issue(order: dict[str, Any]) -> dict[str, object]:
            return issue_coupon(order["user"], order["day"])

        self._job = once(issue)

    def call(self, user: int) -> object:
        return self._job(order={"user": user, "day": DAY})

    def close(self) -> None:
        self._redis.close()
