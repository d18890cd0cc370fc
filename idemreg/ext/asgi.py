"""The `Idempotency-Key` header for any ASGI application: a request that is sent again is not carried out again.

    app = IdempotencyMiddleware(app, AsyncRegistry("requests.db"))

The task of a request ends with the last byte of its response, which reaches the client when that end is stored. What
the application does behind it (background tasks) is not covered. See docs/asgi.md for the answers a client gets.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, Unpack, cast

from idemreg.aio import AsyncRegistry, current_claim
from idemreg.ends import success_end
from idemreg.errors import ClaimLostError, FinishNotRecordedError, IdemregError, ResultError
from idemreg.ext.http import (
    MAX_RESPONSE_BYTES,
    PROBLEMS,
    Problem,
    Response,
    pack,
    problem_of,
    problem_response,
    read_key,
    task_id_of,
    unpack,
)

if TYPE_CHECKING:
    from idemreg.async_claim import AsyncClaim
    from idemreg.options import CallOptions
    from idemreg.registry import Registry

__all__ = ["ApplicationError", "IdempotencyMiddleware", "end_by_status"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Ending: TypeAlias = Literal["keep", "fail", "release"]
User: TypeAlias = Callable[[Scope], "str | Awaitable[str | None] | None"]

MAX_REQUEST_BYTES: Final = 1_024 * 1_024
RETRY_AFTER_S: Final = 1

# Ways to send a body that leave nothing to store, so the application is not offered them.
_NOT_OFFERED: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"})

# Refusals at the door: nothing was done yet, and the same request may be welcome later.
_REFUSALS: Final = frozenset({401, 403, 408, 425, 429})

_log: Final = logging.getLogger(__name__)


class ApplicationError(Exception):
    """The application answered with a server error, or with no whole response: its task has failed."""


def end_by_status(status: int) -> Ending:
    """The default of ``ends``: 5xx fails the task, so that it may run again, and a refusal at the door releases it."""
    if status >= 500:  # noqa: PLR2004 - HTTP's own
        return "fail"
    return "release" if status in _REFUSALS else "keep"


class IdempotencyMiddleware:
    """ASGI middleware after draft-ietf-httpapi-idempotency-key-header. Websockets and lifespan pass through it.

    ``methods``, ``paths``: which requests are covered; paths by their beginning (``/orders`` covers ``/orders/7``), all
    where None. ``required``: whether one without the header is refused, or passes unprotected. ``user``: a function of
    the scope that tells whose keys these are; without it all clients share theirs. ``ends``: what a status makes of the
    task: "keep" (stored, and replayed), "fail" or "release". ``exclude_headers``: not stored, besides those of one
    connection. ``max_request_bytes``: a longer body is refused. ``max_response_bytes``: a longer one is passed on while
    it comes, and not stored. ``documentation``: the address of a page about your use of the header, for the answers.
    The other options are those of `Registry.run`; ``wait=`` lets a duplicate wait for the first request's response.
    """

    def __init__(
        self,
        app: App,
        registry: AsyncRegistry | Registry,
        *,
        methods: Iterable[str] = ("POST", "PATCH"),
        paths: Collection[str] | None = None,
        required: bool = True,
        user: User | None = None,
        ends: Callable[[int], Ending] = end_by_status,
        exclude_headers: Iterable[str] = ("date", "set-cookie"),
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        retry_after: int = RETRY_AFTER_S,
        documentation: str = "",
        name: str = "http",
        **options: Unpack[CallOptions],
    ) -> None:
        if not 0 <= max_response_bytes <= MAX_RESPONSE_BYTES:
            msg = f"max_response_bytes is at most {MAX_RESPONSE_BYTES:,}, not {max_response_bytes!r}"
            raise ValueError(msg)
        if refused := {"on_duplicate", "result", "verify"} & options.keys():
            msg = f"the middleware has no option {', '.join(sorted(refused))}"
            raise TypeError(msg)
        if isinstance(paths, str):
            msg = f"paths takes several, not one text: {paths!r}"
            raise TypeError(msg)
        self._app = app
        self._registry = registry if isinstance(registry, AsyncRegistry) else AsyncRegistry.of(registry)
        self._methods = frozenset(one.upper() for one in methods)
        self._paths = None if paths is None else tuple(one.rstrip("/") for one in paths)
        self._required = required
        self._user = user
        self.ends = ends
        self.exclude = frozenset(one.lower().encode("latin-1") for one in exclude_headers)
        self._max_request_bytes = max_request_bytes
        self.max_response_bytes = max_response_bytes
        self._retry_after_s = retry_after
        self._documentation = documentation
        self._name = name
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it to the application."""
        if scope["type"] != "http" or not self._covers(scope):
            await self._app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name.lower() == b"idempotency-key"]
        key = read_key(values)
        if isinstance(key, Problem):
            if values or self._required:
                await self.answer(send, key)
            else:
                await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if isinstance(body, Problem):
            await self.answer(send, body)
        elif body is not None:
            await self._run(key, body, _Exchange(self, self._app, scope, body, receive, send))

    async def answer(self, send: Send, problem: Problem) -> None:
        """Send a problem in place of a response."""
        response = problem_response(problem, documentation=self._documentation, retry_after_s=self._retry_after_s)
        await _send_whole(send, response)

    async def _run(self, key: str, body: bytes, exchange: _Exchange) -> None:
        scope = exchange.scope
        user = await _user_of(self._user, scope)
        task_id = task_id_of(scope["method"], scope["path"], user, key)
        payload = [scope.get("query_string", b""), hashlib.sha256(body).hexdigest()]
        try:
            outcome = await self._registry.run(task_id, exchange.run, payload=payload, name=self._name, **self._options)
        except IdemregError as error:
            if exchange.is_entered:  # the application's own, or that of an end
                raise
            problem = problem_of(error)
            if problem.status >= 500:  # noqa: PLR2004 - somebody should look
                _log.warning("%s (%s) %s", error.message, error.code, error.hint)
            await self.answer(exchange.send, problem)
            return
        if outcome.replayed:
            response = unpack(outcome.result)
            if response is None:
                await self.answer(exchange.send, PROBLEMS["response-lost"])
                return
            response.headers.append((b"idempotency-replayed", b"true"))
            await _send_whole(exchange.send, response)

    def _covers(self, scope: Scope) -> bool:
        if scope["method"] not in self._methods:
            return False
        path: str = scope["path"]
        return self._paths is None or any(path == one or path.startswith(f"{one}/") for one in self._paths)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | Problem | None:
        """The request's body. None: the client left before it was whole, and nothing was begun."""
        lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > self._max_request_bytes:
            return PROBLEMS["too-large"]
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk: bytes = message.get("body", b"")
            chunks.append(chunk)
            size += len(chunk)
            if size > self._max_request_bytes:
                return PROBLEMS["too-large"]
            if not message.get("more_body", False):
                return b"".join(chunks)


class _Exchange:
    """One request under a claim: the application's receive and send, and the end of its task."""

    def __init__(
        self, middleware: IdempotencyMiddleware, app: App, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        self.scope = scope
        self.send = send
        self.is_entered = False
        self._middleware = middleware
        self._app = app
        self._body: bytes | None = body
        self._receive_more = receive
        self._claim: AsyncClaim | None = None
        self._start: Message | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._streams = False  # beyond the limit: passed on as it comes
        self._is_ended = False
        self._has_left = False  # the client
        self._ended = _event()

    async def run(self) -> None:
        """The job: the application, once."""
        self.is_entered = True
        self._claim = current_claim()
        scope = dict(self.scope)
        if extensions := scope.get("extensions"):
            scope["extensions"] = {one: value for one, value in extensions.items() if one not in _NOT_OFFERED}
        await self._app(scope, self._receive, self._send)
        if self._is_ended:
            return
        if self._streams and self._has_left:  # it stopped since nobody listens; what it had to do was done before
            await self._end(lost="the client left while it was sent")
            return
        msg = "the application returned without a whole response"
        raise ApplicationError(msg)

    async def _receive(self) -> Message:
        """The body that was read; then a disconnect, but not before the response is whole.

        An application that hears of one stops in the middle, and nobody would know how far it came. The client that
        left will ask again, and gets the response. One that streams without an end must hear of it.
        """
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive_more()
        if not self._is_ended and not self._streams:
            await self._ended.wait()
        self._has_left = self._has_left or message["type"] == "http.disconnect"
        return message

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and not self._is_ended:
            await self._send_body(self._start, message.get("body", b""), more=message.get("more_body", False))
        else:  # early hints; and what is out of order, for the server to refuse
            await self.send(message)

    async def _send_body(self, start: Message, chunk: bytes, *, more: bool) -> None:
        self._size += len(chunk)
        self._chunks.append(chunk)
        if not self._streams and self._size > self._middleware.max_response_bytes:
            self._streams = True
            self._ended.set()  # from now on a disconnect is told
            await self._pass(start)
        if self._streams:
            await self._pass({"type": "http.response.body", "body": b"".join(self._chunks), "more_body": True})
            self._chunks.clear()
        if more:
            return
        problem = await self._end(lost="it is longer than max_response_bytes" if self._streams else None)
        if problem is not None and not self._streams:
            await self._middleware.answer(self._pass, problem)
            return
        if not self._streams:
            await self._pass(start)
        await self._pass({"type": "http.response.body", "body": b"".join(self._chunks), "more_body": False})

    async def _pass(self, message: Message) -> None:
        """To the server; where the client has left, to nobody: the application goes on to its end."""
        if self._has_left:
            return
        try:
            await self.send(message)
        except OSError:
            self._has_left = True

    async def _end(self, *, lost: str | None) -> Problem | None:
        """End the task by the response; the problem where that could not be stored."""
        self._is_ended = True
        self._ended.set()
        start, claim = cast("Message", self._start), cast("AsyncClaim", self._claim)
        status: int = start["status"]
        ending = self._middleware.ends(status)
        try:
            if ending == "release":
                await claim.release()
            elif ending == "fail":
                await claim.fail(ApplicationError(f"the application answered with {status}"))
            elif lost is not None:
                end, _ = success_end(claim.grant, claim.options, None)
                await claim.end(end._replace(result=None, error=f"the response was not kept: {lost}"))
            else:
                headers = [(bytes(name), bytes(value)) for name, value in start.get("headers", ())]
                response = Response(status, headers, b"".join(self._chunks))
                await claim.succeed(pack(response, self._middleware.exclude))
        except ResultError:
            _log.warning("the response of task %r cannot be stored: its headers are too long", claim.task_id)
        except (ClaimLostError, FinishNotRecordedError):
            _log.exception("the response of task %r could not be recorded", claim.task_id)
            return PROBLEMS["not-recorded"] if ending == "keep" else None
        return None


async def _send_whole(send: Send, response: Response) -> None:
    await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": False})


async def _user_of(user: User | None, scope: Scope) -> str:
    if user is None:
        return ""
    found = user(scope)
    return (await found if inspect.isawaitable(found) else found) or ""


def _event() -> Any:  # noqa: ANN401 - an Event of the event loop that runs
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.Event()
    import asyncio  # noqa: PLC0415 - the server has imported it

    return asyncio.Event()
