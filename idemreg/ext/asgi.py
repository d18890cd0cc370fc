"""An ASGI middleware for the `Idempotency-Key` header: a request runs once, and its duplicates get its response.

    app = IdempotencyMiddleware(app, registry=Registry("requests.db"))

It imports no framework, and runs under asyncio and trio. A response that is complete is stored before the client sees
its end; docs/asgi.md tells which status stands for what.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from idemreg.aio import AsyncRegistry, current_claim
from idemreg.errors import ClaimLostError, IdemregError, ResultError, StoreError
from idemreg.ext.http import (
    KEY_MISSING,
    TOO_LARGE,
    Problem,
    Recorded,
    RecordedCodec,
    check_address,
    end_to_end,
    parse_key,
    problem_of,
    task_id_of,
)

if TYPE_CHECKING:
    from typing import Unpack

    from idemreg.aio import AsyncClaim
    from idemreg.options import CallOptions
    from idemreg.registry import Registry

__all__ = ["IdempotencyMiddleware", "IncompleteResponseError", "ResponseFailedError"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

NAME: Final = "http request"

MAX_REQUEST_BYTES: Final = 1_024 * 1_024
# As text it grows by a third, and has to stay below the 1 MiB of a result.
MAX_RESPONSE_BYTES: Final = 512 * 1_024
RETRY_AFTER_S: Final = 1
MAX_DIGITS: Final = 18  # of a declared length; Python refuses to read numbers of some thousand

# Of one moment, one machine, or one browser.
LEAVE_OUT: Final = ("date", "server", "set-cookie")

FIRST_FAILURE: Final = 500
# Responses by which the application says that it has not begun: the task is put back, and no attempt is counted.
NOT_BEGUN: Final = frozenset({401, 408, 425, 429})

# By these an application sends what never passes through the body's messages, so it could not be recorded.
_UNRECORDED: Final = frozenset({
    "http.response.pathsend",
    "http.response.push",
    "http.response.trailers",
    "http.response.zerocopysend",
})  # fmt: skip


class ResponseFailedError(Exception):
    """The application answered with a status of 500 or more; stored as the error of the attempt."""


class IncompleteResponseError(RuntimeError):
    """The application returned before its response was complete; the task has failed."""


class IdempotencyMiddleware:
    """Runs the application once for each `Idempotency-Key`, and replays its response. Never blocks the event loop.

    ``methods`` and ``paths`` say what is protected: ``paths`` are paths with all that is below them, or a callable
    that is given the path, as the application's own routes have it: without its ``root_path``.
    ``required``: a protected request without a key is refused (400); False: it just runs.
    ``user``: called with the scope, gives whose keys these are, or None for keys that all share.
    ``fingerprint``: called with the scope and the body, gives what must be the same under one key (the path as it was
    sent, the query and the body). ``leave_out``: headers that are not stored. ``documentation``: the address of your
    own page on keys, for the problems. All other options are those of `Registry.run`, such as ``wait=`` for a running
    twin, ``max_attempts``, ``on_crash`` and ``keep_for``.
    """

    def __init__(
        self,
        app: App,
        registry: AsyncRegistry | Registry,
        *,
        methods: Iterable[str] = ("POST", "PATCH"),
        paths: Iterable[str] | Callable[[str], bool] | None = None,
        required: bool = True,
        user: Callable[[Scope], str | None] | None = None,
        fingerprint: Callable[[Scope, bytes], object] | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        leave_out: Iterable[str] = LEAVE_OUT,
        retry_after_s: int = RETRY_AFTER_S,
        documentation: str = "",
        **options: Unpack[CallOptions],
    ) -> None:
        for name in ("on_duplicate", "result", "release_on"):
            if name in options:
                msg = f"{name} is the middleware's own"
                raise TypeError(msg)
        self.app = app
        self._registry = registry if isinstance(registry, AsyncRegistry) else AsyncRegistry.of(registry)
        self._registry.registry.checked(options)  # a wrong one shows now, not at the first request
        self._methods = frozenset(one.upper() for one in methods)
        self._protects_path = _path_test(paths)
        self._required = required
        self._user = user
        self._fingerprint = fingerprint or _fingerprint
        self._max_request_bytes = max_request_bytes
        self.max_response_bytes: Final = max_response_bytes
        self.leave_out: Final = frozenset(one.lower().encode("ascii") for one in leave_out)
        self._retry_after_s = retry_after_s
        self._documentation = check_address(documentation)
        self._options: CallOptions = {**options, "result": RecordedCodec()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else a server asks of an application."""
        if not self._protects(scope):
            return await self.app(scope, receive, send)
        scope = _listed(scope)
        key = parse_key([value for name, value in scope["headers"] if bytes(name).lower() == b"idempotency-key"])
        if key is KEY_MISSING and not self._required:
            return await self.app(scope, receive, send)
        if isinstance(key, Problem):
            return await self.tell(key, send)
        body = await _read(receive, scope, self._max_request_bytes)
        if isinstance(body, Problem):
            return await self.tell(body, send)
        if body is None:  # the client has gone before it had said all; nothing is stored
            return None
        return await self._once(key, body, scope, send)

    def _protects(self, scope: Scope) -> bool:
        return scope["type"] == "http" and scope["method"] in self._methods and self._protects_path(_route_path(scope))

    async def _once(self, key: str, body: bytes, scope: Scope, send: Send) -> None:
        task_id = task_id_of(scope["method"], scope["path"], self._user and self._user(scope), key)
        exchange = _Exchange(self, scope, body, send)
        payload = self._fingerprint(scope, body)
        try:
            outcome = await self._registry.run(task_id, exchange.run, payload=payload, name=NAME, **self._options)
        except IdemregError as error:
            if exchange.has_begun:  # the application's own, or an end that could not be stored
                raise
            return await self.tell(problem_of(error), send)
        if outcome.replayed:
            await _replay(cast("Recorded", outcome.result), send)
        return None

    async def tell(self, problem: Problem, send: Send) -> None:
        """Answer in place of the application."""
        body = problem.body(self._documentation)
        headers = problem.headers(self._documentation, self._retry_after_s, len(body))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class _Exchange:
    """One run of the application: what it receives, and what becomes of what it sends.

    A response that declares its length is held until it is stored, so that no client has seen what the registry could
    not keep. One of unknown length, or of more than the limit, is passed on as it comes, all but its end.

    A client that goes away does not end the application: that is when it needs the stored response most.
    """

    def __init__(self, middleware: IdempotencyMiddleware, scope: Scope, body: bytes, send: Send) -> None:
        self._of = middleware
        self._scope = _recordable(scope)
        self._request: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._send = send
        self._claim: AsyncClaim | None = None
        self._complete = _event()
        self._start: Message | None = None
        self._held: list[Message] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_stream = False
        self._is_over = False
        self._is_passing = False  # the client has seen the beginning
        self._is_gone = False

    @property
    def has_begun(self) -> bool:
        """Whether the application was entered."""
        return self._claim is not None

    async def run(self) -> None:
        """The job of the task. It ends its claim itself, with the response; what comes after is not covered."""
        self._claim = current_claim()
        await self._of.app(self._scope, self.receive, self.send)
        if not self._is_over:
            msg = "the application returned before its response was complete"
            raise IncompleteResponseError(msg)

    async def receive(self) -> Message:
        """The whole request, then nothing until the response is complete."""
        if self._request is not None:
            request, self._request = self._request, None
            return request
        await self._complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """A part of the response. Its last one ends the claim, and is passed on when that is stored."""
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            await self._body(message)
        else:
            await self._forward(message)

    def _begin(self, message: Message) -> None:
        self._start = message = _listed(message)
        self._held.append(message)
        length = next((value for name, value in message.get("headers", ()) if name.lower() == b"content-length"), None)
        self._is_stream = length is None or not length.isdigit() or int(length) > self._of.max_response_bytes

    async def _body(self, message: Message) -> None:
        if self._start is None:
            msg = "the application sent a body before http.response.start"
            raise RuntimeError(msg)
        body = bytes(message.get("body", b""))
        self._size += len(body)
        if self._size <= self._of.max_response_bytes:
            self._chunks.append(body)
        else:  # nothing to replay: no need to keep it, nor to hold it back
            self._chunks.clear()
            self._is_stream = True
        self._held.append(message)
        if not message.get("more_body", False):
            await self._end()
        elif self._is_stream:
            await self._pass_on()

    async def _end(self) -> None:
        self._is_over = True
        try:
            await self._settle()
        except (StoreError, ClaimLostError) as error:
            if self._is_passing:  # an error of the application: the server breaks the response off
                raise
            self._held.clear()
            await self._of.tell(problem_of(error), self._forward)
        else:
            await self._pass_on()
        finally:
            self._complete.set()

    async def _settle(self) -> None:
        claim, start = cast("AsyncClaim", self._claim), cast("Message", self._start)
        if not claim.is_open:  # the application has ended it itself, and this client is to hear what it says of that
            return None
        status = int(start["status"])  # an `HTTPStatus` is no plain data, and would be lost with its response
        if status in NOT_BEGUN:
            return await claim.release()
        if status >= FIRST_FAILURE:
            return await claim.fail(ResponseFailedError(f"the application answered {status}"))
        is_kept = self._size <= self._of.max_response_bytes
        headers = end_to_end(start.get("headers", ()), self._of.leave_out)
        with contextlib.suppress(ResultError):  # stored as lost: this client gets its response, a later one is told so
            await claim.succeed(Recorded(status, headers, b"".join(self._chunks) if is_kept else None))
        return None

    async def _pass_on(self) -> None:
        self._is_passing = True
        held, self._held = self._held, []
        for message in held:
            await self._forward(message)

    async def _forward(self, message: Message) -> None:
        if self._is_gone:
            return
        try:
            await self._send(message)
        except OSError:  # by the ASGI specification: the client has gone
            self._is_gone = True


# --- requests -------------------------------------------------------------------------------------------------------


async def _read(receive: Receive, scope: Scope, limit: int) -> bytes | Problem | None:
    """The whole body; a `Problem` where it has more than ``limit`` bytes, None where the client has gone."""
    declared = next((value for name, value in scope["headers"] if bytes(name).lower() == b"content-length"), b"")
    if declared.isdigit() and (len(declared) > MAX_DIGITS or int(declared) > limit):
        return TOO_LARGE
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(bytes(message.get("body", b"")))
        size += len(chunks[-1])
        if size > limit:
            return TOO_LARGE
        more = message.get("more_body", False)
    return b"".join(chunks)


def _fingerprint(scope: Scope, body: bytes) -> object:
    told = {"query": bytes(scope.get("query_string", b"")), "sha256": hashlib.sha256(body).digest()}
    raw_path = scope.get("raw_path")  # optional; the path that names the task is decoded, so that /a%2Fb is /a/b there
    return told if raw_path is None else {**told, "path": bytes(raw_path)}


def _listed(one: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The scope or message with headers that can be read twice; by the specification they are any iterable."""
    if isinstance(one.get("headers", ()), (list, tuple)):
        return one
    return {**one, "headers": list(one["headers"])}


def _route_path(scope: Scope) -> str:
    """The path below the ``root_path`` under which a server or a mount has put the application, as it routes by it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    below = path.removeprefix(root)
    return below if below == "" or below.startswith("/") else path


def _path_test(paths: Iterable[str] | Callable[[str], bool] | None) -> Callable[[str], bool]:
    if paths is None:
        return lambda _path: True
    if callable(paths):
        return paths
    if isinstance(paths, str):
        msg = f"paths takes several paths or a callable, not {paths!r}"
        raise TypeError(msg)
    stems = [one.rstrip("/") for one in paths]
    return lambda path: any(path == stem or path.startswith(f"{stem}/") for stem in stems)


def _recordable(scope: Scope) -> Scope:
    """The scope without the extensions by which an application could answer past this middleware."""
    extensions = scope.get("extensions") or {}
    if _UNRECORDED.isdisjoint(extensions):
        return scope
    return {**scope, "extensions": {name: one for name, one in extensions.items() if name not in _UNRECORDED}}


def _event() -> Any:  # noqa: ANN401 - of asyncio or of trio
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.Event()
    import asyncio  # noqa: PLC0415 - the server has imported it; under trio nobody needs it

    return asyncio.Event()


# --- replays --------------------------------------------------------------------------------------------------------


async def _replay(recorded: Recorded, send: Send) -> None:
    headers = [*recorded.headers, (b"idempotent-replayed", b"true")]
    await send({"type": "http.response.start", "status": recorded.status, "headers": headers})
    await send({"type": "http.response.body", "body": recorded.body or b"", "more_body": False})
