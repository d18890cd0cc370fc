"""HTTP as the middleware of `idemreg.ext.asgi` needs it, without a server: keys, task ids, problems, stored responses.

The header is that of draft-ietf-httpapi-idempotency-key-header-07, a problem's body that of RFC 9457.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from idemreg.errors import (
    ChecksumMismatchError,
    IdemregError,
    ResultError,
    StoreError,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
)
from idemreg.template import MAX_TASK_ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = [
    "HOP_BY_HOP",
    "MAX_KEY_CHARACTERS",
    "MAX_RESPONSE_BYTES",
    "PROBLEMS",
    "Headers",
    "Problem",
    "Response",
    "pack",
    "problem_of",
    "problem_response",
    "read_key",
    "task_id_of",
    "unpack",
]

Headers = list[tuple[bytes, bytes]]

MAX_KEY_CHARACTERS: Final = 255

# What can be stored of a response: a result holds 1 MiB, and bytes grow by a third in it; the rest is for headers.
MAX_RESPONSE_BYTES: Final = 704 * 1_024

# Up to here a body that is text is stored as text, for people: JSON writes a character in six bytes at most.
_TEXT_BYTES: Final = 64 * 1_024

# Of one connection, and so never of the response (RFC 9110, section 7.6.1).
HOP_BY_HOP: Final = frozenset({
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
})  # fmt: skip

# A string of RFC 8941, and its parameters, which say nothing here.
_STRING: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"(?: *;[ !#-~]*)?')
# What many clients send in its place: one word.
_WORD: Final = re.compile(r"[!#-+\--:<-~]+")


class Problem(NamedTuple):
    """An answer of the middleware's own: ``code`` for machines, ``hint`` for the client."""

    status: int
    code: str
    title: str
    hint: str
    may_retry: bool = False


_REPEAT: Final = "Repeat the same request after Retry-After."
_NEW_KEY: Final = "Use a new key for a new operation."

_PROBLEMS: Final = (
    Problem(
        400,
        "key-missing",
        "Idempotency-Key is missing",
        "Send the header, with a key that is new for each operation and the same for each repetition.",
    ),
    Problem(
        400,
        "key-malformed",
        "Idempotency-Key is malformed",
        f'Send it once, as a string of up to {MAX_KEY_CHARACTERS} characters: "8e03978e-40d5-43dd-bc93-6894a57f9324"',
    ),
    Problem(409, "running", "A request with this key is being processed", _REPEAT, may_retry=True),
    Problem(
        410,
        "response-lost",
        "The request was carried out; its response was not kept",
        "Read the resource to see what it did. It is not carried out again.",
    ),
    Problem(410, "cancelled", "The operation was cancelled, and will not be carried out", _NEW_KEY),
    Problem(413, "too-large", "The request's body is too large", "Send less."),
    Problem(422, "mismatch", "The key was used with another request", _NEW_KEY),
    Problem(500, "failed", "The operation failed for good", "Ask the service's operator, with this key."),
    Problem(
        500,
        "unknown",
        "Nobody knows whether the request was carried out",
        "Read the resource to see, or ask the service's operator, before it is repeated with a new key.",
    ),
    Problem(
        500,
        "not-recorded",
        "The request was carried out, but that could not be recorded",
        "Read the resource to see what it did, before it is repeated with a new key.",
    ),
    Problem(500, "store", "The request was not begun, as nothing can be recorded", "Ask the service's operator."),
    Problem(503, "unavailable", "The request was not begun", _REPEAT, may_retry=True),
)
PROBLEMS: Final = {one.code: one for one in _PROBLEMS}


def problem_of(error: IdemregError) -> Problem:
    """What a refusal of the registry means to the client."""
    match error:
        case TaskRunningError():
            code = "running"
        case ChecksumMismatchError():
            code = "mismatch"
        case TaskUnknownError():
            code = "unknown"
        case TaskFailedError():
            code = "failed"
        case TaskDoneError():
            code = "cancelled"
        case ResultError():
            code = "response-lost"
        case StoreError(retryable=True):
            code = "unavailable"
        case _:
            code = "store"
    return PROBLEMS[code]


# --- the key --------------------------------------------------------------------------------------------------------


def read_key(values: list[bytes]) -> str | Problem:
    """The key of the header's values.

    A quoted string, as the draft has it, and a bare word are one key. A missing one and a malformed one are problems.
    """
    if not values:
        return PROBLEMS["key-missing"]
    text = values[0].decode("latin-1").strip()
    string = _STRING.fullmatch(text)
    word = text if _WORD.fullmatch(text) else ""
    key = word if string is None else re.sub(r"\\(.)", r"\1", string[1])
    if len(values) > 1 or not key or len(key) > MAX_KEY_CHARACTERS:
        return PROBLEMS["key-malformed"]
    return key


def task_id_of(method: str, path: str, user: str, key: str) -> str:
    """The task_id: ``http:POST:/orders:user:key``, percent-encoded; of a long one a hash of it all."""
    parts = [quote(one, safe="/") for one in (path, user, key)]
    task_id = ":".join(("http", method, *parts))
    if len(task_id) <= MAX_TASK_ID_BYTES:
        return task_id
    return f"http:{method}:sha256-{hashlib.sha256(task_id.encode()).hexdigest()}"


# --- the response -----------------------------------------------------------------------------------------------------


class Response(NamedTuple):
    """A whole response."""

    status: int
    headers: Headers
    body: bytes


def pack(response: Response, exclude: Collection[bytes]) -> dict[str, Any]:
    """What is stored of a response, as plain data. Headers of one connection are left out, and ``exclude``."""
    left_out = {*HOP_BY_HOP, *exclude, *_named_by_connection(response.headers)}
    headers = [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name, value in response.headers
        if name.lower() not in left_out
    ]
    return {"status": response.status, "headers": headers, "body": _readable(response.body)}


def unpack(stored: object) -> Response | None:
    """The response again; None where another result is stored, such as an operator's."""
    match stored:
        case {"status": int(status), "headers": list(headers), "body": str() | bytes() as body}:
            pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            return Response(status, pairs, body.encode() if isinstance(body, str) else body)
    return None


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    values = (value for name, value in headers if name.lower() == b"connection")
    return {one.strip().lower() for value in values for one in value.split(b",")}


def _readable(body: bytes) -> str | bytes:
    if len(body) > _TEXT_BYTES:
        return body
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


def problem_response(problem: Problem, *, documentation: str, retry_after_s: int) -> Response:
    """The response that tells of a problem; ``documentation`` is the page that its link names."""
    content = {
        "type": f"{documentation}#{problem.code}" if documentation else "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.hint,
        "code": problem.code,
    }
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    if documentation:
        headers.append((b"link", f'<{documentation}>; rel="help"'.encode("latin-1")))
    if problem.may_retry:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    return Response(problem.status, headers, body)
