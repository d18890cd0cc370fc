"""The Idempotency-Key header: every answer of the middleware, and what becomes of the request's task."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from idemreg import AsyncRegistry, Status, TaskFailedError
from idemreg.ext.asgi import IdempotencyMiddleware
from idemreg.ext.http import MAX_KEY_CHARACTERS, PROBLEMS, Problem, Response, pack, read_key, task_id_of, unpack
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

App = Any
KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}


@pytest.fixture
def areg(path: Path) -> Iterator[AsyncRegistry]:
    registry = AsyncRegistry(path, durability="normal")
    yield registry
    registry.registry.close()


class Answer:
    """What a client got: the messages that the application sent, put together."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        start = next(one for one in messages if one["type"] == "http.response.start")
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(one.get("body", b"") for one in messages if one["type"] == "http.response.body")

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        return str(json.loads(self.body)["code"])


async def ask(
    app: App,
    body: bytes = b"{}",
    *,
    headers: dict[str, str] | None = None,
    method: str = "POST",
    path: str = "/orders",
    receive: Callable[[], Awaitable[dict[str, Any]]] | None = None,
) -> Answer:
    """One request, as a server hands it over."""
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> dict[str, Any]:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(name.lower().encode(), value.encode()) for name, value in (KEY if headers is None else headers).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": pairs}
    await app(scope, receive or next_message, send)
    return Answer(sent)


class Shop:
    """An application that counts what it does."""

    def __init__(self, status: int = 201, *, chunks: tuple[bytes, ...] = (b"or", b"der"), gate: Any = None) -> None:
        self.status, self.chunks, self.gate = status, chunks, gate
        self.entered = 0
        self.inside = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.entered += 1
        self.inside.set()
        message = await receive()
        assert message["type"] == "http.request"
        if self.gate is not None:
            await self.gate.wait()
        headers = [(b"content-type", b"text/plain"), (b"x-order", b"7"), (b"date", b"now"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def tasks(areg: AsyncRegistry) -> list[Any]:
    return list(areg.registry.tasks())


# --- the answers ----------------------------------------------------------------------------------------------------


def test_a_request_that_comes_again_gets_the_same_response(areg: AsyncRegistry) -> None:
    """Status, headers and body are replayed, marked as a replay; headers of the connection and the date are not."""
    shop = Shop()
    app = IdempotencyMiddleware(shop, areg)

    async def main() -> tuple[Answer, Answer]:
        return await ask(app), await ask(app)

    first, again = asyncio.run(main())
    assert (first.status, first.body, shop.entered) == (201, b"order", 1)
    assert first.headers["connection"] == "close"
    assert (again.status, again.body) == (201, b"order")
    assert again.headers == {"content-type": "text/plain", "x-order": "7", "idempotency-replayed": "true"}


def test_refusals_before_the_application(areg: AsyncRegistry) -> None:
    """400 without a key or with a malformed one, 422 for another payload, 413 for too much: it is never entered."""
    shop = Shop()
    app = IdempotencyMiddleware(shop, areg, max_request_bytes=100, documentation="https://example.com/keys")

    async def main() -> list[Answer]:
        await ask(app)
        return [
            await ask(app, headers={}),
            await ask(app, headers={"Idempotency-Key": '"open'}),
            await ask(app, headers={"Idempotency-Key": "x" * (MAX_KEY_CHARACTERS + 1)}),
            await ask(app, b'{"other": 1}'),
            await ask(app, b"x" * 101, headers={"Idempotency-Key": "big"}),
            await ask(app, headers={"Idempotency-Key": "told", "Content-Length": "101"}),
        ]

    answers = asyncio.run(main())
    assert [(one.status, one.code) for one in answers] == [
        (400, "key-missing"),
        (400, "key-malformed"),
        (400, "key-malformed"),
        (422, "mismatch"),
        (413, "too-large"),
        (413, "too-large"),
    ]
    assert shop.entered == 1
    body = json.loads(answers[0].body)
    assert body["type"] == "https://example.com/keys#key-missing"
    assert answers[0].headers["link"] == '<https://example.com/keys>; rel="help"'
    assert len(tasks(areg)) == 1


def test_what_is_not_covered_passes(areg: AsyncRegistry) -> None:
    """Other methods, other paths, optional keys, websockets and lifespan reach the application untouched."""
    shop = Shop()
    app = IdempotencyMiddleware(shop, areg, paths=["/orders"], required=False)
    other: list[str] = []

    async def protocol(scope: Any, receive: Any, send: Any) -> None:
        other.append(scope["type"])

    async def main() -> None:
        for method, path, headers in (("GET", "/orders", {}), ("POST", "/other", KEY), ("POST", "/orders", {})):
            assert (await ask(app, method=method, path=path, headers=headers)).status == 201
        for kind in ("lifespan", "websocket"):
            await IdempotencyMiddleware(protocol, areg)({"type": kind}, None, None)  # type: ignore[arg-type]

    asyncio.run(main())
    assert (shop.entered, other) == (3, ["lifespan", "websocket"])
    assert tasks(areg) == []


def test_requests_at_once(areg: AsyncRegistry) -> None:
    """One is carried out; a twin is told 409 with Retry-After, or waits for the response where wait= allows it."""

    async def main() -> None:
        gate = asyncio.Event()
        shop = Shop(gate=gate)
        app, patient = IdempotencyMiddleware(shop, areg), IdempotencyMiddleware(shop, areg, wait=PATIENCE_S)
        first = asyncio.ensure_future(ask(app))
        await shop.inside.wait()
        refused = await ask(app)
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (409, "running", "1")
        waiting = [asyncio.ensure_future(ask(patient)) for _ in range(20)]
        gate.set()
        answers = [await first, *(await asyncio.gather(*waiting))]
        assert {(one.status, one.body) for one in answers} == {(201, b"order")}
        assert shop.entered == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "state", "again"),
    [(201, "succeeded", 1), (404, "succeeded", 1), (500, "failed", 2), (503, "failed", 2), (429, "pending", 2)],
)
def test_what_a_status_makes_of_the_task(areg: AsyncRegistry, status: int, state: str, again: int) -> None:
    """A success and a client's error are kept; a server's error may run again; a refusal at the door does not count."""
    shop = Shop(status)
    app = IdempotencyMiddleware(shop, areg)

    async def main() -> None:
        assert (await ask(app)).status == status
        assert [task.status.word for task in await asyncio.to_thread(tasks, areg)] == [state]
        assert (await ask(app)).status == status

    asyncio.run(main())
    assert shop.entered == again


def test_an_exception_of_the_application_fails_the_task(areg: AsyncRegistry) -> None:
    """The server gets it as it was raised; the next request is the next attempt; used up, it is told 500."""
    raised = 0

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        nonlocal raised
        raised += 1
        raise ZeroDivisionError

    app = IdempotencyMiddleware(broken, areg, max_attempts=2)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await ask(app)
        assert (await ask(app)).code == "failed"

    asyncio.run(main())
    assert raised == 2
    with pytest.raises(TaskFailedError):
        areg.registry.claim(tasks(areg)[0].task_id, name="http", payload=payload_of(b"{}"), max_attempts=2)


def payload_of(body: bytes) -> list[Any]:
    import hashlib  # noqa: PLC0415 - here only

    return [b"", hashlib.sha256(body).hexdigest()]


def test_a_response_without_an_end_is_passed_on_and_not_kept(areg: AsyncRegistry) -> None:
    """Beyond the limit it streams to the client; a duplicate is told 410, and the application is not entered again."""
    shop = Shop(chunks=(b"x" * 600, b"y" * 600, b"z" * 600))
    app = IdempotencyMiddleware(shop, areg, max_response_bytes=1_000)

    async def main() -> tuple[Answer, Answer]:
        return await ask(app), await ask(app)

    first, again = asyncio.run(main())
    assert (first.status, len(first.body)) == (201, 1_800)
    assert (again.status, again.code, shop.entered) == (410, "response-lost", 1)


def test_a_client_that_leaves_gets_the_response_when_it_asks_again(areg: AsyncRegistry) -> None:
    """Its request is carried out to the end, though nobody listens any more; the next one is a replay."""
    shop = Shop()
    app = IdempotencyMiddleware(shop, areg)

    async def gone(message: Any) -> None:
        raise OSError

    async def main() -> Answer:
        waiting = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> dict[str, Any]:
            return waiting.pop() if waiting else {"type": "http.disconnect"}

        pairs = [(b"idempotency-key", KEY["Idempotency-Key"].encode())]
        scope = {"type": "http", "method": "POST", "path": "/orders", "query_string": b"", "headers": pairs}
        await app(scope, receive, gone)
        return await ask(app)

    again = asyncio.run(main())
    assert (again.status, again.body, shop.entered) == (201, b"order", 1)


def test_a_server_that_cancels_leaves_no_row_running(areg: AsyncRegistry) -> None:
    """Cancelled in the application: unknown under the default policy, and the client is told so."""

    async def main() -> Answer:
        shop = Shop(gate=asyncio.Event())
        app = IdempotencyMiddleware(shop, areg)
        request = asyncio.ensure_future(ask(app))
        await shop.inside.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        return await ask(app)

    answer = asyncio.run(main())
    assert (answer.status, answer.code) == (500, "unknown")
    assert [task.status for task in tasks(areg)] == [Status.UNKNOWN]


def test_keys_are_those_of_a_user_and_a_path(areg: AsyncRegistry) -> None:
    """One key of two users, or at two paths, names two operations."""
    shop = Shop()

    async def user(scope: Any) -> str | None:
        return dict(scope["headers"]).get(b"x-user", b"").decode() or None

    app = IdempotencyMiddleware(shop, areg, user=user)

    async def main() -> None:
        for name in ("a", "b", "a"):
            await ask(app, headers={**KEY, "X-User": name})
        await ask(app, path="/other")

    asyncio.run(main())
    assert shop.entered == 3


def test_a_request_that_is_not_whole_begins_nothing(areg: AsyncRegistry) -> None:
    """The client left while it sent: no row, no application."""
    shop = Shop()
    messages: list[dict[str, Any]] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"{", "more_body": True},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(b"idempotency-key", b"k")]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": pairs}
    asyncio.run(IdempotencyMiddleware(shop, areg)(scope, receive, send))
    assert (sent, shop.entered, tasks(areg)) == ([], 0, [])


# --- the pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([b'"a key"'], "a key"),
        ([rb'"a \"key\" \\"'], 'a "key" \\'),
        ([b"word-1"], "word-1"),
        ([b'"key"; version=2'], "key"),
        ([], None),
        ([b""], None),
        ([b'""'], None),
        ([b"two words"], None),
        ([b'"a"', b'"b"'], None),
        (["\u00e9".encode()], None),
    ],
)
def test_the_key_is_a_string_or_a_word(values: list[bytes], key: str | None) -> None:
    """As RFC 8941 has strings, or one bare word; everything else is refused."""
    found = read_key(values)
    assert isinstance(found, Problem) if key is None else found == key


def test_task_ids_do_not_collide() -> None:
    """What separates the parts is escaped in them, and a long id is a hash of it all."""
    ids = {
        task_id_of("POST", path, user, key) for path in ("/a", "/a:b") for user in ("", "b:c") for key in ("k", "c:k")
    }
    assert len(ids) == 8
    assert task_id_of("POST", "/x" * 400, "", "k") != task_id_of("POST", "/x" * 400, "", "l")
    assert len(task_id_of("POST", "/x" * 400, "", "k")) < 512


def test_responses_come_back_as_they_were() -> None:
    """Text and bytes, repeated headers; what is no stored response is none."""
    for body in (b"text", b"\xff\x00", b"t" * 100_000):
        response = Response(201, [(b"x", b"1"), (b"x", b"2"), (b"Keep-Alive", b"5")], body)
        assert unpack({"status": 200}) is None
        assert unpack(pack(response, ())) == Response(201, [(b"x", b"1"), (b"x", b"2")], body)
    assert all(problem.status >= 400 and problem.hint for problem in PROBLEMS.values())


# --- real applications and servers ----------------------------------------------------------------------------------


def test_behind_it_a_fastapi_application(areg: AsyncRegistry) -> None:
    """FastAPI's own validation is a response like any other; the registry is shared with decorated endpoints."""
    api = FastAPI()
    ran: list[int] = []

    @api.post("/orders")
    async def order(request: Request, cents: int) -> dict[str, int]:
        ran.append(cents)
        return {"cents": cents, "bytes": len(await request.body())}

    api.add_middleware(IdempotencyMiddleware, registry=areg)
    with TestClient(api) as client:
        for _ in range(3):
            answer = client.post("/orders?cents=5", content=b"abc", headers=KEY)
            assert (answer.status_code, answer.json()) == (200, {"cents": 5, "bytes": 3})
        assert answer.headers["idempotency-replayed"] == "true"
        assert client.post("/orders?cents=6", content=b"abc", headers=KEY).status_code == 422
        assert client.post("/orders?cents=x", headers={"Idempotency-Key": "k"}).status_code == 422
    assert ran == [5]


def test_a_killed_server_leaves_its_request_unknown(path: Path) -> None:
    """SIGKILL in the middle of a request: the next server says that nobody knows, and does not carry it out."""
    script = """
        import asyncio
        from idemreg import AsyncRegistry
        from idemreg.ext.asgi import IdempotencyMiddleware
        async def app(scope, receive, send):
            say("entered")
            await asyncio.Event().wait()
        async def main():
            middleware = IdempotencyMiddleware(app, AsyncRegistry(sys.argv[1]))
            messages = [{"type": "http.request", "body": b"{}"}]
            async def receive(): return messages.pop()
            scope = {"type": "http", "method": "POST", "path": "/orders", "query_string": b"",
                     "headers": [(b"idempotency-key", b"k")]}
            await middleware(scope, receive, None)
        asyncio.run(main())
    """
    with Script(script, path) as server:
        server.expect("entered")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    shop = Shop()
    areg = AsyncRegistry(path)
    answer = asyncio.run(ask(IdempotencyMiddleware(shop, areg), headers={"Idempotency-Key": "k"}))
    areg.registry.close()
    assert (answer.status, answer.code, shop.entered) == (500, "unknown", 0)
