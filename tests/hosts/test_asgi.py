"""The middleware for the `Idempotency-Key` header: plain ASGI calls, FastAPI, and a real server that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2 as httpx
import pytest
import trio
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from idemreg import (
    AsyncRegistry,
    FinishNotRecordedError,
    Registry,
    Status,
    StoreBusyError,
    StoreFullError,
    TaskRunningError,
    Verdict,
    Verified,
    aio,
)
from idemreg.ext import http
from idemreg.ext.asgi import IdempotencyMiddleware, IncompleteResponseError
from idemreg.ext.http import Recorded, end_to_end, parse_key, task_id_of
from idemreg.sqlite import tasks as statements
from idemreg.sqlite.backend import SqliteStore
from idemreg.template import check_task_id
from tests.support.processes import PATIENCE_S, ROOT, Script
from tests.support.raw import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("nothing_on_the_event_loop")

PAGE = (ROOT / "docs" / "asgi.md").read_text("utf-8")
KEY = '"8e03978e-40d5-43e8-bc93-6894a57f9324"'


class Answer(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def problem(self) -> str:
        assert (b"content-type", b"application/problem+json") in self.headers
        told = json.loads(self.body)
        assert told["status"] == self.status
        return str(told["code"])

    @property
    def replayed(self) -> bool:
        return (b"idempotent-replayed", b"true") in self.headers


def scope_of(key: str | None = KEY, *, method: str = "POST", path: str = "/orders", **more: Any) -> dict[str, Any]:
    headers = [] if key is None else [(b"idempotency-key", key.encode("latin-1"))]
    return {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, **more}


async def no_more() -> dict[str, Any]:
    pytest.fail("the request was asked for after its end")


async def call(
    app: Any, scope: dict[str, Any] | None = None, body: bytes = b"{}", send: Any = None, parts: int = 1
) -> Answer:
    """One request by hand; what comes is taken apart."""
    size = -(-len(body) // parts)
    messages = [
        {"type": "http.request", "body": body[n * size : (n + 1) * size], "more_body": n < parts - 1}
        for n in range(parts)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else await no_more()

    async def take(message: dict[str, Any]) -> None:
        sent.append(message)
        if send is not None:
            await send(message)

    await app(scope_of() if scope is None else scope, receive, take)
    start, *bodies = sent
    assert [one.get("more_body", False) for one in bodies] == [True] * (len(bodies) - 1) + [False]
    return Answer(start["status"], list(start["headers"]), b"".join(one["body"] for one in bodies))


class App:
    """An application that answers with what it is told to, and counts how often it was entered."""

    def __init__(self, *answers: tuple[int, list[tuple[bytes, bytes]], list[bytes]] | Exception) -> None:
        self.answers = list(answers)
        self.entered = 0
        self.requests: list[bytes] = []
        self.gate: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.entered += 1
        message = await receive()
        assert not message["more_body"]
        self.requests.append(message["body"])
        if self.gate is not None:
            await self.gate()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, headers, chunks = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for n, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": n < len(chunks) - 1})


CREATED = (201, [(b"content-length", b"2"), (b"content-type", b"text/plain")], [b"ok"])


@pytest.fixture
def areg(path: Path) -> Iterator[AsyncRegistry]:
    registry = AsyncRegistry(path, durability="normal")
    yield registry
    registry.registry.close()


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    run: Any = trio.run if request.param == "trio" else lambda main: asyncio.run(main())
    return run  # type: ignore[no-any-return]


def tasks(areg: AsyncRegistry) -> list[Any]:
    """All rows, for a test that runs no event loop at the moment."""
    return list(areg.registry.tasks())


async def only(areg: AsyncRegistry) -> Any:
    (task,) = [task async for task in areg.tasks()]
    return task


# --- the draft ----------------------------------------------------------------------------------------------------


def test_a_duplicate_gets_the_response_again(areg: AsyncRegistry, loop: Any) -> None:
    """The application runs once; a later request with the same key and body gets its status, headers and body."""
    headers = [
        (b"content-type", b"text/plain"),
        (b"Location", b"/orders/7"),
        (b"connection", b"close, x-hop"),
        (b"x-hop", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"set-cookie", b"session=1"),
        (b"x-private", b"1"),
    ]
    app = App((201, headers, [b"a", b"b\xff"]))
    protected = IdempotencyMiddleware(app, areg, leave_out=["Set-Cookie", "x-private"])

    async def main() -> None:
        first = await call(protected, body=b"order", parts=3)
        again = await call(protected, body=b"order")
        assert first == Answer(201, headers, b"ab\xff")
        kept = [(b"content-type", b"text/plain"), (b"location", b"/orders/7"), (b"idempotent-replayed", b"true")]
        assert again == Answer(201, kept, b"ab\xff")

    loop(main)
    assert app.requests == [b"order"]
    (task,) = tasks(areg)
    assert (task.status, task.name) == (Status.SUCCEEDED, "http request")
    assert task.task_id == "POST /orders 8e03978e-40d5-43e8-bc93-6894a57f9324"


def test_a_missing_key_is_refused(areg: AsyncRegistry) -> None:
    """Without a key nothing runs, and the problem says what to do and where to read about it."""
    app = App(CREATED)
    answer = asyncio.run(call(IdempotencyMiddleware(app, areg, documentation="https://x.example/keys"), scope_of(None)))
    assert (answer.status, answer.problem, app.entered) == (400, "key-missing", 0)
    assert json.loads(answer.body)["type"] == "https://x.example/keys#key-missing"
    assert (b"link", b'<https://x.example/keys>; rel="describedby"') in answer.headers
    assert (b"cache-control", b"no-store") in answer.headers


def test_what_is_not_protected_just_runs(areg: AsyncRegistry) -> None:
    """Other methods, other paths, and a missing key where none is required: the application's own business."""
    app = App(CREATED)

    async def main() -> None:
        await call(IdempotencyMiddleware(app, areg), scope_of(method="GET"))
        await call(IdempotencyMiddleware(app, areg, methods=["put"]), scope_of())
        await call(IdempotencyMiddleware(app, areg, paths=["/pay", "/ord"]), scope_of())
        await call(IdempotencyMiddleware(app, areg, paths=lambda path: path != "/orders"), scope_of())
        await call(IdempotencyMiddleware(app, areg, required=False), scope_of(None))
        assert app.entered == 5
        assert await areg.count() == {}
        assert (await call(IdempotencyMiddleware(app, areg, paths=["/orders/"]), scope_of(None))).status == 400
        below = scope_of(None, path="/orders/7", method="PATCH")
        assert (await call(IdempotencyMiddleware(app, areg, paths=["/orders"]), below)).status == 400

    asyncio.run(main())


def test_paths_are_the_applications_own(areg: AsyncRegistry) -> None:
    """Under a root_path or a mount `paths` are matched as the routes are, and the task_id has the full path."""
    app = App(CREATED)

    async def main() -> None:
        protected = IdempotencyMiddleware(app, areg, paths=["/orders"])
        for path in ("/api/orders", "/api/orders/7", "/orders"):
            assert (await call(protected, scope_of(None, path=path, root_path="/api"))).problem == "key-missing"
        for path, root in (("/apiorders", "/api"), ("/api/orders", ""), ("/orders/7", "/orders"), ("/api", "/api")):
            assert (await call(protected, scope_of(None, path=path, root_path=root))).status == 201
        seen: list[str] = []
        listening = IdempotencyMiddleware(app, areg, paths=lambda path: bool(seen.append(path)))  # type: ignore[func-returns-value]
        for path in ("/api/orders", "/api", "/apiorders"):
            await call(listening, scope_of(path=path, root_path="/api"))
        assert seen == ["/orders", "", "/apiorders"]
        await call(protected, scope_of(path="/api/orders", root_path="/api"))
        assert (await only(areg)).task_id == f"POST /api/orders {KEY[1:-1]}"

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_is_passed_through(areg: AsyncRegistry, kind: str) -> None:
    """Lifespan and websockets reach the application with the server's own functions."""
    seen = []

    async def app(*args: object) -> None:
        seen.append(args)

    args = ({"type": kind}, object(), object())
    asyncio.run(IdempotencyMiddleware(app, areg)(*args))  # type: ignore[arg-type]
    assert seen == [args]


@pytest.mark.parametrize(
    "field", ["", '""', '"a', 'a"', "a b", '"a"; b=1', '"a", "b"', '"é"', '"a\\b"', "a,b", "x" * 256, '"\x7f"']
)
def test_a_malformed_key_is_refused(areg: AsyncRegistry, field: str) -> None:
    """What is no string of RFC 8941, nor a plain word, is no key."""
    answer = asyncio.run(call(IdempotencyMiddleware(App(CREATED), areg), scope_of(field)))
    assert (answer.status, answer.problem) == (400, "key-malformed")


def test_two_keys_are_refused(areg: AsyncRegistry) -> None:
    """The header comes once."""
    scope = scope_of()
    scope["headers"].append((b"Idempotency-Key", b'"b"'))
    assert asyncio.run(call(IdempotencyMiddleware(App(CREATED), areg), scope)).problem == "key-malformed"


@pytest.mark.parametrize(("field", "key"), [(b'"a b"', "a b"), (b"a-b", "a-b"), (b' "a\\"\\\\" ', 'a"\\')])
def test_a_key_is_what_stands_between_the_quotes(field: bytes, key: str) -> None:
    """Quotes and escapes are syntax; a bare word counts as the same word quoted."""
    assert parse_key([field]) == key


def test_another_payload_under_one_key_is_refused(areg: AsyncRegistry) -> None:
    """Another body, another query, or another path that reads the same when decoded, is other work: 422, no run."""
    app = App(CREATED)
    protected = IdempotencyMiddleware(app, areg)

    async def main() -> None:
        await call(protected, body=b"1")
        for answer in (
            await call(protected, body=b"2"),
            await call(protected, scope_of(query_string=b"a=1"), body=b"1"),
        ):
            assert (answer.status, answer.problem) == (422, "mismatch")
        encoded = [scope_of('"c"', path="/orders/a/b", raw_path=raw) for raw in (b"/orders/a%2Fb", b"/orders/a/b")]
        assert [(await call(protected, scope)).status for scope in (*encoded, encoded[0])] == [201, 422, 201]
        loose = IdempotencyMiddleware(app, areg, fingerprint=lambda scope, body: None)
        assert (await call(loose, scope_of('"b"'), body=b"1")).status == 201
        assert (await call(loose, scope_of('"b"'), body=b"2")).replayed

    asyncio.run(main())
    assert app.requests == [b"1", b"{}", b"1"]


def test_keys_belong_to_a_method_a_path_and_a_user(areg: AsyncRegistry) -> None:
    """The same key of another user, on another path or by another method is other work."""
    app = App(CREATED)
    protected = IdempotencyMiddleware(app, areg, user=lambda scope: scope["who"])
    scopes = [
        scope_of(who="ann"),
        scope_of(who="bob"),
        scope_of(who=None),
        scope_of(who="ann", path="/payments"),
        scope_of(who="ann", method="PATCH"),
    ]

    async def main() -> None:
        for scope in scopes:
            assert not (await call(protected, dict(scope))).replayed
        for scope in scopes:
            assert (await call(protected, dict(scope))).replayed
        with pytest.raises(ValueError, match="text or None"):
            await call(protected, scope_of(who=""))

    asyncio.run(main())
    assert app.entered == len(scopes)


texts = st.text(st.characters(codec="utf-8"), max_size=300) | st.sampled_from(
    ["a b", "a%20b", "sha256=", "é", "e\u0301"]
)
quads = st.tuples(st.sampled_from(["POST", "PATCH"]), texts, st.none() | texts.filter(bool), texts.filter(bool))


@given(quads, quads)
def test_no_two_requests_share_a_task(one: Any, other: Any) -> None:
    """A task_id is legal whatever the parts are, and tells them apart."""
    assert check_task_id(task_id_of(*one))
    assert (task_id_of(*one) == task_id_of(*other)) == (one == other)


def test_headers_of_one_connection_are_not_repeated() -> None:
    """Hop-by-hop headers, those that Connection names, and those that were asked to be left out."""
    headers = [(b"Keep-Alive", b"5"), (b"X-A", b"1"), (b"Connection", b"X-B"), (b"X-B", b"2"), (b"Date", b"now")]
    assert end_to_end(headers, frozenset({b"date"})) == [(b"x-a", b"1")]


def test_headers_that_can_be_read_once_reach_everybody(areg: AsyncRegistry) -> None:
    """By the specification headers are any iterable: the application, the client and a replay have all of them."""
    seen = []
    headers = [(b"x-a", b"1"), (b"content-length", b"2"), (b"x-b", b"2")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(list(scope["headers"]))
        await App((201, iter(headers), [b"ok"]))(scope, receive, send)  # type: ignore[arg-type]

    async def main() -> None:
        protected = IdempotencyMiddleware(app, areg)
        for scope in (scope_of(), scope_of()):
            given = [(b"content-length", b"2"), *scope["headers"], (b"content-type", b"x")]
            answer = await call(protected, {**scope, "headers": iter(given)})
            assert answer.headers[:3] == headers
        assert seen == [given]

    asyncio.run(main())


# --- twins --------------------------------------------------------------------------------------------------------


def test_concurrent_duplicates_run_once(areg: AsyncRegistry) -> None:
    """While the first runs, its twins are told to come again (409); with wait= they get its response."""

    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()

        async def gate() -> None:
            entered.set()
            await go.wait()

        app = App(CREATED)
        app.gate = gate
        first = asyncio.create_task(call(IdempotencyMiddleware(app, areg)))
        await entered.wait()
        twins = await asyncio.gather(*(call(IdempotencyMiddleware(app, areg, retry_after_s=7)) for _ in range(10)))
        assert {(twin.status, twin.problem) for twin in twins} == {(409, "running")}
        assert all((b"retry-after", b"7") in twin.headers for twin in twins)
        waiting = [asyncio.create_task(call(IdempotencyMiddleware(app, areg, wait=30))) for _ in range(10)]
        go.set()
        assert (await first).body == b"ok"
        assert {(twin.status, twin.body, twin.replayed) for twin in await asyncio.gather(*waiting)} == {
            (201, b"ok", True)
        }
        assert app.entered == 1

    asyncio.run(main())


# --- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [b"", b"11", b"9" * 5_000])
def test_a_large_request_is_refused_before_the_application(areg: AsyncRegistry, declared: bytes) -> None:
    """A body beyond the limit, declared or found while it comes: 413, nothing runs, nothing is stored."""
    app = App(CREATED)
    protected = IdempotencyMiddleware(app, areg, max_request_bytes=10)
    scope = scope_of()
    if declared:
        scope["headers"].append((b"content-length", declared))
    answer = asyncio.run(call(protected, scope, body=b"x" * 11, parts=3))
    assert (answer.status, answer.problem, app.entered, tasks(areg)) == (413, "request-too-large", 0, [])
    assert asyncio.run(call(protected, body=b"x" * 10)).status == 201


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"12")], [(b"content-length", b"5")]])
def test_a_large_response_is_passed_on_and_lost(areg: AsyncRegistry, headers: list[tuple[bytes, bytes]]) -> None:
    """The first client gets all of it. A later one is told that it happened, and that the response is gone (410)."""
    app = App((200, headers, [b"abc"] * 4))
    protected = IdempotencyMiddleware(app, areg, max_response_bytes=10)

    async def main() -> None:
        assert (await call(protected)).body == b"abc" * 4
        again = await call(protected)
        assert (again.status, again.problem) == (410, "response-lost")

    asyncio.run(main())
    assert app.entered == 1
    (task,) = tasks(areg)
    assert (task.status, task.result) == (Status.SUCCEEDED, None)


def test_what_is_too_large_is_passed_on_as_it_comes(areg: AsyncRegistry) -> None:
    """A response that grows past the limit, whatever it declared, is held back no longer and kept nowhere."""
    limit, part, parts = 200_000, 100_000, 100
    sent: list[int] = []
    held: list[tuple[int, int]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        for n in range(parts):
            await send({"type": "http.response.body", "body": b"%d" % (n % 10) * part, "more_body": n < parts - 1})
            held.append(((n + 1) * part - sum(sent), tracemalloc.get_traced_memory()[0]))

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))

    tracemalloc.start()
    try:
        asyncio.run(IdempotencyMiddleware(app, areg, max_response_bytes=limit)(scope_of(), once(b"{}"), send))
    finally:
        tracemalloc.stop()
    assert [back for back, _ in held] == [part, 2 * part] + [0] * (parts - 2)
    memory = [bytes_ for _, bytes_ in held]
    assert max(memory) < min(memory) + 5 * part
    assert sum(sent) == part * parts


def test_the_largest_response_that_is_kept_fits(areg: AsyncRegistry) -> None:
    """A body of the default limit, of bytes that are no text, is kept and replayed."""
    body = bytes(range(256)) * (512 * 4)
    protected = IdempotencyMiddleware(App((200, [], [body])), areg)

    async def main() -> None:
        await call(protected)
        again = await call(protected)
        assert again.replayed
        assert again.body == body

    asyncio.run(main())


def test_the_client_sees_no_end_that_is_not_stored(areg: AsyncRegistry, loop: Any) -> None:
    """A response of known length is held until it is stored, one of unknown length all but its end."""

    async def statuses(app: App, key: str) -> list[tuple[object, Status]]:
        seen = []

        async def send(message: dict[str, Any]) -> None:
            task = await areg.get(f"POST /orders {key}")
            assert task is not None
            seen.append((message.get("body", b"start"), task.status))

        await call(IdempotencyMiddleware(app, areg), scope_of(key), send=send)
        return seen

    async def main() -> None:
        known = await statuses(App((200, [(b"content-length", b"2")], [b"a", b"b", b""])), "known")
        assert known == [(one, Status.SUCCEEDED) for one in (b"start", b"a", b"b", b"")]
        stream = await statuses(App((200, [], [b"a", b"b", b""])), "stream")
        assert stream == [*((one, Status.RUNNING) for one in (b"start", b"a", b"b")), (b"", Status.SUCCEEDED)]

    loop(main)


# --- failures -----------------------------------------------------------------------------------------------------


def test_an_exception_fails_the_task_and_a_retry_runs(areg: AsyncRegistry) -> None:
    """The server gets the application's own error; the same request may run again until its attempts are used up."""
    app = App(ZeroDivisionError("a"), ZeroDivisionError("b"), CREATED)
    protected = IdempotencyMiddleware(app, areg, max_attempts=2)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await call(protected)
        refused = await call(protected)
        assert (refused.status, refused.problem) == (500, "failed")
        assert (await call(IdempotencyMiddleware(app, areg))).status == 201

    asyncio.run(main())
    assert app.entered == 3


def test_a_response_of_500_fails_the_task(areg: AsyncRegistry) -> None:
    """It is passed on and not stored as the answer: a retry runs again."""
    app = App((503, [], [b"down"]), CREATED)
    protected = IdempotencyMiddleware(app, areg)

    async def main() -> None:
        assert (await call(protected)).body == b"down"
        task = await only(areg)
        assert task.status is Status.FAILED
        assert task.error.startswith("idemreg.ext.asgi.ResponseFailedError: the application answered 503")
        assert (await call(protected)).body == b"ok"
        assert (await call(protected)).replayed

    asyncio.run(main())


@pytest.mark.parametrize("status", [401, 429])
def test_a_response_that_says_come_again_puts_the_task_back(areg: AsyncRegistry, status: int) -> None:
    """The application has not begun: no attempt is counted, and a retry runs."""
    app = App((status, [], [b"no"]), CREATED)
    protected = IdempotencyMiddleware(app, areg, max_attempts=1)

    async def main() -> None:
        assert (await call(protected)).status == status
        task = await only(areg)
        assert (task.status, task.attempt) == (Status.PENDING, 0)
        assert (await call(protected)).body == b"ok"

    asyncio.run(main())


def test_a_refusal_is_an_answer(areg: AsyncRegistry) -> None:
    """A response of 404 is the result of the request, and is replayed as the draft wants it."""
    app = App((404, [], [b"no such shop"]), CREATED)
    protected = IdempotencyMiddleware(app, areg)

    async def main() -> None:
        await call(protected)
        again = await call(protected)
        assert (again.status, again.body, again.replayed) == (404, b"no such shop", True)

    asyncio.run(main())


def test_a_response_without_an_end_fails_the_task(areg: AsyncRegistry) -> None:
    """An application that returns too soon has not succeeded."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with pytest.raises(IncompleteResponseError):
        asyncio.run(call(IdempotencyMiddleware(app, areg)))
    assert tasks(areg)[0].status is Status.FAILED


def test_the_applications_own_errors_are_not_mistaken(areg: AsyncRegistry) -> None:
    """An error of idemreg that the application itself raises is the application's failure, not an answer of ours."""
    with pytest.raises(TaskRunningError):
        asyncio.run(call(IdempotencyMiddleware(App(TaskRunningError("of another task")), areg)))
    assert tasks(areg)[0].status is Status.FAILED


def test_a_claim_that_cannot_be_stored_starts_nothing(areg: AsyncRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy store is 503 with Retry-After, and the application does not start."""

    def busy(*args: object) -> None:
        msg = "busy"
        raise StoreBusyError(msg)

    app = App(CREATED)
    monkeypatch.setattr(SqliteStore, "together", busy)
    answer = asyncio.run(call(IdempotencyMiddleware(app, areg), scope_of()))
    assert (answer.status, answer.problem, app.entered) == (503, "unavailable", 0)
    assert (b"retry-after", b"1") in answer.headers


@pytest.mark.parametrize("streams", [False, True])
def test_an_end_that_cannot_be_stored_is_not_acknowledged(
    areg: AsyncRegistry,
    monkeypatch: pytest.MonkeyPatch,
    streams: bool,  # noqa: FBT001
) -> None:
    """The client does not see the 201: it is told that nobody knows, or its stream breaks off."""

    def full(*args: object) -> None:
        msg = "full"
        raise StoreFullError(msg)

    protected = IdempotencyMiddleware(App((201, [], [b"a", b""]) if streams else CREATED), areg)
    with monkeypatch.context() as patch:
        patch.setattr(statements, "succeed", full)
        patch.setattr(statements, "finish", full)
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        if streams:
            with pytest.raises(FinishNotRecordedError):
                asyncio.run(call(protected, send=send))
            assert sent[-1]["more_body"]
        else:
            answer = asyncio.run(call(protected))
            assert (answer.status, answer.problem) == (500, "unknown")
    again = asyncio.run(call(protected))
    assert (again.status, again.problem) == (500, "unknown")


def test_an_operators_no_is_an_answer(areg: AsyncRegistry) -> None:
    """A task that was cancelled does not run: 403."""
    app = App(ZeroDivisionError("a"))
    protected = IdempotencyMiddleware(app, areg)

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await call(protected)
        await areg.cancel((await only(areg)).task_id)
        refused = await call(protected)
        assert (refused.status, refused.problem, app.entered) == (403, "refused", 1)

    asyncio.run(main())


# --- handlers that end their claim themselves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "again"),
    [
        (None, (410, b"")),
        (Recorded(202, [(b"x-a", b"1")], b"kept"), (202, b"kept")),
        ({"status": HTTPStatus.ACCEPTED, "headers": [], "body": b"kept"}, (202, b"kept")),
    ],
    ids=["nothing", "Recorded", "a mapping"],
)
def test_effects_in_the_same_transaction(
    areg: AsyncRegistry, loop: Any, result: object, again: tuple[int, bytes]
) -> None:
    """Effects commit with the success: this client gets the response, a later one what `claim.result` was, or 410."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        claim = aio.current_claim()
        async with claim.transaction() as tx:
            await tx.execute("create table if not exists effects (x)")
            await tx.execute("insert into effects values (1)")
            claim.result = result
        await App(CREATED)(scope, receive, send)

    async def main() -> None:
        protected = IdempotencyMiddleware(app, areg, on_crash="rerun")
        assert await call(protected) == Answer(*CREATED[:2], b"ok")
        assert (await only(areg)).status is Status.SUCCEEDED
        for _ in range(2):
            answer = await call(protected)
            assert answer.status == again[0]
            assert answer.problem == "response-lost" if result is None else answer.body == again[1]

    loop(main)
    with contextlib.closing(connect(areg.registry.path)) as connection:
        assert connection.execute("select count(*) from effects").fetchall() == [(1,)]


def test_a_handler_puts_its_request_back(areg: AsyncRegistry) -> None:
    """After `release` in the handler its response goes to the client, whatever it is, and a retry runs."""
    app = App((409, [(b"content-length", b"2")], [b"no"]), CREATED)

    async def gate() -> None:
        if app.entered == 1:
            await aio.current_claim().release()

    app.gate = gate
    protected = IdempotencyMiddleware(app, areg, max_attempts=1)

    async def main() -> None:
        assert (await call(protected)).body == b"no"
        task = await only(areg)
        assert (task.status, task.attempt) == (Status.PENDING, 0)
        assert (await call(protected)).body == b"ok"

    asyncio.run(main())


# --- clients that go, servers that stop ---------------------------------------------------------------------------


def test_a_client_that_goes_before_it_has_said_all_leaves_nothing(areg: AsyncRegistry) -> None:
    """A disconnect in the middle of the body: nothing runs, nothing is stored."""
    app = App(CREATED)
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    asyncio.run(IdempotencyMiddleware(app, areg)(scope_of(), receive, no_more))  # type: ignore[arg-type]
    assert (app.entered, tasks(areg)) == (0, [])


def test_a_client_that_goes_does_not_end_the_application(areg: AsyncRegistry, loop: Any) -> None:
    """The application is told of a disconnect only when its response is complete, and its retry is answered."""
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def listen() -> None:
            told.append((await receive())["type"])

        async def answer() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for more in (True, True, False):
                assert not told
                await send({"type": "http.response.body", "body": b"x", "more_body": more})

        if trio.lowlevel.in_trio_run():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                nursery.start_soon(answer)
        else:
            await asyncio.gather(listen(), answer())

    async def gone(message: Any) -> None:
        raise BrokenPipeError

    async def main() -> None:
        protected = IdempotencyMiddleware(app, areg)
        await protected(scope_of(), once(b"{}"), gone)
        assert told == ["http.disconnect"]
        assert (await call(protected)).body == b"xxx"

    loop(main)


def once(body: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def test_a_cancelled_application_leaves_unknown(areg: AsyncRegistry) -> None:
    """A server that cancels a request in the middle leaves open whether it happened: 500, with a hint, for ever."""

    async def main() -> None:
        entered = asyncio.Event()

        async def gate() -> None:
            entered.set()
            await asyncio.Event().wait()

        app = App(CREATED)
        app.gate = gate
        protected = IdempotencyMiddleware(app, areg)
        request = asyncio.create_task(call(protected))
        await entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        for _ in range(2):
            answer = await call(protected)
            assert (answer.status, answer.problem) == (500, "unknown")
            assert "idemreg resolve" in json.loads(answer.body)["detail"]
        assert app.entered == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("verdict", "result", "status"),
    [
        ("happened", None, 410),
        ("happened", {"status": 202, "headers": [(b"x-by", b"hand")], "body": b"done"}, 202),
        ("did-not-happen", None, 201),
    ],
)
def test_an_operators_word_ends_the_doubt(areg: AsyncRegistry, verdict: Any, result: object, status: int) -> None:
    """What `resolve` says is what the retry gets: that it happened, the response that was given, or a new run."""

    async def main() -> None:
        app = App(ZeroDivisionError("a"), CREATED)
        protected = IdempotencyMiddleware(app, areg, unknown_on=ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            await call(protected)
        assert (await call(protected)).problem == "unknown"
        await areg.resolve((await only(areg)).task_id, verdict, result=result)
        assert (await call(protected)).status == status
        assert app.entered == (2 if status == 201 else 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (Verified(Verdict.HAPPENED, result={"status": 202, "headers": [(b"x-by", b"hook")], "body": b"done"}), 202),
        (Verified(Verdict.HAPPENED, result=Recorded(202, [(b"x-by", b"hook")], b"done")), 202),
        (Verified(Verdict.HAPPENED, result={"status": 202, "headers": [("x-by", "hook")], "body": b""}), 410),
        (True, 410),
        (False, 201),
        (None, 500),
    ],
)
def test_a_verify_hook_ends_the_doubt(areg: AsyncRegistry, said: Any, status: int) -> None:
    """What the hook says is what the retry gets, and each one after it: the shape that `resolve` takes serves too."""
    app = App(ZeroDivisionError("a"), CREATED)
    protected = IdempotencyMiddleware(
        app, areg, unknown_on=ZeroDivisionError, on_crash="verify", verify=lambda task: said
    )

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await call(protected)
        answers = [await call(protected) for _ in range(2)]
        assert [one.status for one in answers] == [status] * 2
        if status == 202:
            assert [(one.headers[0], one.body) for one in answers] == [((b"x-by", b"hook"), b"done")] * 2
        assert app.entered == (2 if status == 201 else 1)

    asyncio.run(main())


def test_a_request_that_is_cancelled_while_its_end_is_stored_has_ended(
    areg: AsyncRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finish is done whole: the retry is answered from it."""
    finish = statements.finish

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def cancelling(*args: Any) -> bool:
            loop.call_soon_threadsafe(request.cancel)
            return bool(finish(*args))

        monkeypatch.setattr(statements, "finish", cancelling)
        app = App(CREATED)
        protected = IdempotencyMiddleware(app, areg)
        request = asyncio.create_task(call(protected))
        with pytest.raises(asyncio.CancelledError):
            await request
        again = await call(protected)
        assert (again.status, again.replayed, app.entered) == (201, True, 1)

    asyncio.run(main())


SERVER = """
    import asyncio
    import uvicorn
    from idemreg import Registry
    from idemreg.ext.asgi import IdempotencyMiddleware

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return await send({"type": "lifespan.shutdown.complete"})
        body = (await receive())["body"]
        if body == b"hang":
            say("entered")
            await receive()
        if body == b"slow":
            say("entered")
            await asyncio.to_thread(wait)
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            say(self.servers[0].sockets[0].getsockname()[1])

    registry = Registry(sys.argv[1])
    config = uvicorn.Config(IdempotencyMiddleware(app, registry), host="127.0.0.1", port=0, log_level="critical")
    Server(config).run()
"""


def test_a_killed_server_leaves_unknown(path: Path) -> None:
    """SIGKILL in the middle of a request: the next server answers its retry as unknown, and all else as ever."""
    with Script(SERVER, path) as server, httpx.Client(headers={"Idempotency-Key": KEY}, timeout=PATIENCE_S) as client:
        url = f"http://127.0.0.1:{server.line()}/orders"
        assert client.post(url, content=b"x", headers={"Idempotency-Key": "other"}).status_code == 201
        with pytest.raises(httpx.ReadTimeout):
            client.post(url, content=b"hang", timeout=httpx.Timeout(PATIENCE_S, read=0.05))
        server.expect("entered")
        assert client.post(url, content=b"hang").status_code == 409  # that client went, and its request goes on
        server.kill()
    with Script(SERVER, path) as server, httpx.Client(headers={"Idempotency-Key": KEY}, timeout=PATIENCE_S) as client:
        url = f"http://127.0.0.1:{server.line()}/orders"
        answer = client.post(url, content=b"hang")
        assert (answer.status_code, answer.json()["code"]) == (500, "unknown")
        assert client.post(url, content=b"other").status_code == 422
        other = client.post(url, content=b"x", headers={"Idempotency-Key": '"other"'})
        assert (other.status_code, other.text, other.headers["idempotent-replayed"]) == (201, "ok", "true")


def test_two_server_processes_share_their_keys(path: Path) -> None:
    """While one process carries a request out, the other answers its duplicate by 409, and then by its response."""
    headers = {"Idempotency-Key": KEY}
    with Script(SERVER, path) as one, Script(SERVER, path) as other, ThreadPoolExecutor(1) as pool:
        urls = [f"http://127.0.0.1:{server.line()}/orders" for server in (one, other)]
        first = pool.submit(httpx.post, urls[0], content=b"slow", headers=headers, timeout=PATIENCE_S)
        one.expect("entered")
        twin = httpx.post(urls[1], content=b"slow", headers=headers, timeout=PATIENCE_S)
        assert (twin.status_code, twin.json()["code"]) == (409, "running")
        one.go()
        assert (first.result().status_code, "idempotent-replayed" in first.result().headers) == (201, False)
        for url in urls:
            again = httpx.post(url, content=b"slow", headers=headers, timeout=PATIENCE_S)
            assert (again.status_code, again.text, again.headers["idempotent-replayed"]) == (201, "ok", "true")
    with Registry(path, create=False) as registry:
        assert [(task.status, task.attempt) for task in registry.tasks()] == [(Status.SUCCEEDED, 1)]


# --- FastAPI ------------------------------------------------------------------------------------------------------


class Shop:
    """A FastAPI application with a middleware of its own inside ours, and what its handlers saw."""

    def __init__(self, registry: AsyncRegistry) -> None:
        self.entered: list[str] = []
        self.api = FastAPI()

        @self.api.middleware("http")
        async def add_header(request: Request, call_next: Any) -> Any:
            response = await call_next(request)
            response.headers["x-inner"] = "1"
            return response

        self.api.add_middleware(IdempotencyMiddleware, registry=registry, paths=["/orders", "/lines", "/broken"])

        @self.api.post("/orders", status_code=201)
        async def order(item: dict[str, int], later: BackgroundTasks) -> dict[str, Any]:
            later.add_task(self.entered.append, "background")
            self.entered.append("order")
            return {"item": item, "key": aio.current_claim().downstream_key}

        @self.api.post("/lines")
        async def lines(request: Request) -> StreamingResponse:
            assert not await request.is_disconnected()
            self.entered.append("lines")

            async def produce() -> Any:
                for n in range(3):
                    yield f"{n}\n"

            return StreamingResponse(produce())

        @self.api.post("/broken")
        async def broken() -> None:
            self.entered.append("broken")
            msg = "broken"
            raise LookupError(msg)


def test_a_fastapi_application_is_protected(areg: AsyncRegistry) -> None:
    """Handlers, streams, background tasks and errors of FastAPI, by its own test client."""
    shop = Shop(areg)
    with TestClient(shop.api, raise_server_exceptions=False) as client:
        assert client.post("/orders", json={"lamp": 1}).status_code == 400
        headers = {"Idempotency-Key": KEY}
        first = client.post("/orders", json={"lamp": 1}, headers=headers)
        again = client.post("/orders", json={"lamp": 1}, headers=headers)
        assert (first.status_code, first.json()["item"]) == (201, {"lamp": 1})
        assert (again.status_code, again.json(), again.headers["x-inner"]) == (201, first.json(), "1")
        assert "idempotent-replayed" in again.headers
        assert client.post("/orders", json={"lamp": 2}, headers=headers).status_code == 422
        refused = [client.post("/orders", json=7, headers={"Idempotency-Key": "7"}) for _ in range(2)]
        assert [(one.status_code, one.json()) for one in refused] == [(422, refused[0].json())] * 2
        assert [client.post("/lines", headers=headers).text for _ in range(2)] == ["0\n1\n2\n"] * 2
        assert [client.post("/broken", headers=headers).status_code for _ in range(2)] == [500, 500]
        assert client.get("/docs").status_code == 200
    assert shop.entered == ["order", "background", "lines", "broken", "broken"]


def test_a_mounted_application_is_protected(areg: AsyncRegistry) -> None:
    """Under a mount, and behind a proxy's root_path, the paths of the application's own routes are protected."""
    shops = [Shop(areg), Shop(areg)]
    outer = FastAPI()
    outer.mount("/shop", shops[0].api)
    with TestClient(outer) as mounted, TestClient(shops[1].api, root_path="/api") as behind:
        for client, path in ((mounted, "/shop/orders"), (behind, "/api/orders")):
            assert client.post(path, json={"lamp": 1}).status_code == 400
            answers = [client.post(path, json={"lamp": 1}, headers={"Idempotency-Key": KEY}) for _ in range(2)]
            assert answers[0].json() == answers[1].json()
    assert [shop.entered for shop in shops] == [["order", "background"]] * 2


def test_a_status_with_a_name_is_kept(areg: AsyncRegistry) -> None:
    """`HTTPStatus.CREATED`, which FastAPI's users write, is replayed like 201."""
    api = FastAPI()

    @api.post("/orders")
    def order() -> JSONResponse:
        return JSONResponse({"a": 1}, status_code=HTTPStatus.CREATED)

    api.add_middleware(IdempotencyMiddleware, registry=areg)
    with TestClient(api) as client:
        answers = [client.post("/orders", headers={"Idempotency-Key": KEY}) for _ in range(2)]
    assert [(one.status_code, one.json()) for one in answers] == [(201, {"a": 1})] * 2


def test_work_behind_the_response_changes_nothing(areg: AsyncRegistry) -> None:
    """A background task that fails is the server's to log; the request has succeeded, and is replayed."""
    api = FastAPI()
    ran: list[str] = []

    def later() -> None:
        ran.append("later")
        raise LookupError

    @api.post("/orders")
    def order(background: BackgroundTasks) -> None:
        ran.append("order")
        background.add_task(later)

    api.add_middleware(IdempotencyMiddleware, registry=areg)
    with TestClient(api) as client:
        with pytest.raises(LookupError):
            client.post("/orders", headers={"Idempotency-Key": KEY})
        assert "idempotent-replayed" in client.post("/orders", headers={"Idempotency-Key": KEY}).headers
    assert ran == ["order", "later"]


def test_an_asynchronous_client_and_its_twins(areg: AsyncRegistry) -> None:
    """Twenty clients send one request at once: one execution, and each gets its response in the end."""
    shop = Shop(areg)

    async def send(client: httpx.AsyncClient) -> Any:
        while (answer := await client.post("/orders", json={"lamp": 1}, headers={"Idempotency-Key": KEY})).is_error:
            assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
        return answer.json()

    async def main() -> None:
        transport = httpx.ASGITransport(shop.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
            answers = await asyncio.gather(*(send(client) for _ in range(20)))
        assert answers == [answers[0]] * 20

    asyncio.run(main())
    assert shop.entered.count("order") == 1


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"on_duplicate": "raise"},
        {"result": None},
        {"paths": "/orders"},
        {"colour": "red"},
        {"wait": -1},
        {"documentation": "https://x.example/ü"},
        {"documentation": "https://x.example/>; rel=next"},
        {"documentation": "https://x.example/\r\nx: y"},
    ],
)
def test_wrong_options_show_at_once(areg: AsyncRegistry, options: dict[str, Any]) -> None:
    """Not at the first request."""
    with pytest.raises((TypeError, ValueError)):
        IdempotencyMiddleware(App(CREATED), areg, **options)


def test_extensions_that_pass_by_are_hidden(registry: Registry) -> None:
    """An application cannot answer in a way that is not recorded; a registry for threads serves as well."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["extensions"])
        await App(CREATED)(scope, receive, send)

    scope = scope_of(extensions={"tls": {}, "http.response.pathsend": {}})
    asyncio.run(call(IdempotencyMiddleware(app, registry), scope))
    assert seen == [{"tls": {}}]
    assert set(scope["extensions"]) == {"tls", "http.response.pathsend"}


def test_it_needs_no_framework() -> None:
    """The module is imported where there is neither a framework, nor a server, nor trio."""
    source = """
        class Nothing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("anyio", "fastapi", "httpx", "pydantic", "starlette", "trio", "uvicorn"):
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Nothing())
        from idemreg.ext.asgi import IdempotencyMiddleware
        say(IdempotencyMiddleware.__name__)
    """
    with Script(source) as script:
        script.expect("IdempotencyMiddleware")
        assert script.end() == 0


# --- docs/asgi.md -------------------------------------------------------------------------------------------------


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each python block of docs/asgi.md, in order."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/asgi.md", "exec"), namespace)  # noqa: S102 - the page's own words


def test_the_page_tells_every_problem() -> None:
    """The table has each problem, under its status."""
    problems = {one for one in vars(http).values() if isinstance(one, http.Problem)}
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", PAGE, re.MULTILINE)
    told = {(int(status), code) for status, codes in rows for code in re.findall(r"`([\w-]+)`", codes)}
    assert told == {(one.status, one.code) for one in problems}


def test_what_comes_behind_the_end_goes_nowhere(areg: AsyncRegistry) -> None:
    """The response is stored; the application is told that the client has gone, and sends more to nobody."""
    heard: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
        heard.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"more"})

    async def main() -> None:
        middleware = IdempotencyMiddleware(app, registry=areg)
        first, again = await call(middleware), await call(middleware)
        assert (first.status, first.body, first.replayed) == (201, b"ok", False)
        assert (again.status, again.body, again.replayed) == (201, b"ok", True)
        assert (await only(areg)).status is Status.SUCCEEDED

    asyncio.run(main())
    assert heard == ["http.disconnect"]


def test_what_is_no_part_of_a_response_passes_by(areg: AsyncRegistry) -> None:
    """A message that no extension hides reaches the server, and is not recorded: a replay is without it."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.debug", "info": {"template": "x"}})
        await App(CREATED)(scope, receive, send)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        protected = IdempotencyMiddleware(app, registry=areg)
        await protected(scope_of(), receive, send)
        assert [one["type"].rpartition(".")[2] for one in sent] == ["debug", "start", "body"]
        again = await call(protected)
        assert (again.status, again.body, again.replayed) == (201, b"ok", True)
        assert (await only(areg)).status is Status.SUCCEEDED

    asyncio.run(main())


def test_a_body_before_its_start_is_the_applications_error(areg: AsyncRegistry) -> None:
    """The task has failed with it, and the client has seen nothing."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"before http\.response\.start"):
            await call(IdempotencyMiddleware(app, registry=areg))
        task = await only(areg)
        assert task.status is Status.FAILED
        assert "before http.response.start" in task.error

    asyncio.run(main())
