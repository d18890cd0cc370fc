"""What an HTTP server needs to keep the `Idempotency-Key` header, without any server: keys, task ids, problems.

After the IETF draft draft-ietf-httpapi-idempotency-key-header (07). docs/asgi.md tells it to users.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from idemreg.errors import (
    ChecksumMismatchError,
    ClaimLostError,
    FinishNotRecordedError,
    ResultError,
    StoreError,
    TaskDoneError,
    TaskFailedError,
    TaskRunningError,
    TaskUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from idemreg.errors import IdemregError

__all__ = [
    "KEY_MALFORMED",
    "KEY_MISSING",
    "TOO_LARGE",
    "Headers",
    "Problem",
    "Recorded",
    "RecordedCodec",
    "check_address",
    "end_to_end",
    "parse_key",
    "problem_of",
    "task_id_of",
]

MAX_KEY_CHARACTERS: Final = 255

# Each part of a task_id that is longer is told by its hash; together they stay below the 512 bytes of a task_id.
PART_CHARACTERS: Final = 120

# A String of RFC 8941 as the draft wants it. Bare tokens too, since most clients of today send them so.
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE: Final = re.compile(r"[!#-+\--:<-\[\]-~]+")

# Enough of RFC 3986 for a header's <...>: no character that ends it, and none that is no ASCII.
_ADDRESS: Final = re.compile(r"[!#-;=?-~]*")

# RFC 9110, 7.6.1, and what older proxies send: they speak of one connection, not of the response.
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

Headers = list[tuple[bytes, bytes]]


class Problem(NamedTuple):
    """An answer in place of the application's, after RFC 9457. ``code`` is for machines."""

    status: int
    code: str
    title: str
    hint: str
    may_retry: bool = False

    def body(self, documentation: str) -> bytes:
        """The JSON; ``type`` is the place in the documentation, if there is one."""
        kind = f"{documentation}#{self.code}" if documentation else "about:blank"
        told = {"type": kind, "title": self.title, "status": self.status, "detail": self.hint, "code": self.code}
        return json.dumps(told).encode()

    def headers(self, documentation: str, retry_after_s: int, length: int) -> Headers:
        """Of the whole answer. Nobody may keep it: the next one can be another."""
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % length),
            (b"cache-control", b"no-store"),
        ]
        if self.may_retry:
            headers.append((b"retry-after", b"%d" % retry_after_s))
        if documentation:
            headers.append((b"link", f'<{documentation}>; rel="describedby"'.encode("ascii")))
        return headers


KEY_MISSING: Final = Problem(
    400,
    "key-missing",
    "Idempotency-Key is missing",
    "This operation runs once for each Idempotency-Key: send the header, with a key that is new for new work.",
)
KEY_MALFORMED: Final = Problem(
    400,
    "key-malformed",
    "Idempotency-Key is malformed",
    f'Send the header once, as a quoted string of 1 to {MAX_KEY_CHARACTERS} ASCII characters: "8e03978e-40d5-...".',
)
TOO_LARGE: Final = Problem(
    413,
    "request-too-large",
    "The request body is too large",
    "Nothing was carried out. Send less, in several requests.",
)

_RUNNING: Final = Problem(
    409,
    "running",
    "A request with this Idempotency-Key is being carried out",
    "Send the same request again later to get its response.",
    may_retry=True,
)
_MISMATCH: Final = Problem(
    422,
    "mismatch",
    "Idempotency-Key is already used",
    "Another request was sent under this key. Nothing was carried out: give other work another key.",
)
_UNKNOWN: Final = Problem(
    500,
    "unknown",
    "Nobody knows whether the request was carried out",
    "The server ended in the middle of it, and nothing runs it again by itself. Do not send it under another key before"
    " its effect was looked for. An operator finds it by `idemreg list --status unknown`, and settles it by `idemreg"
    " resolve`.",
)
_FAILED: Final = Problem(
    500,
    "failed",
    "The request failed before",
    "It is not tried again by itself. An operator can allow one more attempt by `idemreg retry`.",
)
_LOST: Final = Problem(
    410,
    "response-lost",
    "The request was carried out, and its response is gone",
    "The response was too large to be kept, or only the effect of the request is known. Do not send it again: look at"
    " its effect.",
)
_REFUSED: Final = Problem(
    403, "refused", "The request is not going to be carried out", "An operator has decided so; use another key."
)
_UNAVAILABLE: Final = Problem(
    503, "unavailable", "The registry of requests cannot be read or written", "Nothing was carried out."
)


def check_address(documentation: str) -> str:
    """The address as it can stand in a header; ValueError for any other."""
    if _ADDRESS.fullmatch(documentation) is None:
        msg = f"documentation= takes a URI in ASCII, with all else in it as %XX, not {documentation!r}"
        raise ValueError(msg)
    return documentation


def problem_of(error: IdemregError) -> Problem:
    """What a client is told of an error that kept the application from running, or its end from being stored."""
    match error:
        case TaskRunningError():
            return _RUNNING
        case ChecksumMismatchError():
            return _MISMATCH
        case TaskUnknownError():
            return _UNKNOWN._replace(may_retry=error.retryable)  # a verify hook is asked again
        case FinishNotRecordedError() | ClaimLostError():  # it ran, and is, or becomes, unknown
            return _UNKNOWN
        case TaskFailedError():
            return _FAILED
        case ResultError():
            return _LOST
        case TaskDoneError():
            return _REFUSED
        case StoreError():
            return _UNAVAILABLE._replace(may_retry=error.retryable)
    raise error


# --- the key --------------------------------------------------------------------------------------------------------


def parse_key(fields: Sequence[bytes]) -> str | Problem:
    """The key in the header's fields. A quoted key and the same one without quotes are the same."""
    if not fields:
        return KEY_MISSING
    if len(fields) > 1:
        return KEY_MALFORMED
    text = fields[0].decode("latin-1").strip(" \t")
    if quoted := _QUOTED.fullmatch(text):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _BARE.fullmatch(text):
        key = text
    else:
        return KEY_MALFORMED
    return key if 1 <= len(key) <= MAX_KEY_CHARACTERS else KEY_MALFORMED


def task_id_of(method: str, path: str, user: str | None, key: str) -> str:
    """The task_id: method, path, the user if there is one, and the key, parted by spaces. No two quadruples share one.

    ValueError for a ``user`` that is empty or no text: all who have none would share their keys.
    """
    parts: tuple[str, ...] = (method, path, key)
    if user is not None:
        given: object = user  # a caller's function may give anything
        if not isinstance(given, str) or not given:
            msg = f"user= gives a text or None, not {given!r}"
            raise ValueError(msg)
        parts = (method, path, user, key)
    return " ".join(map(_part, parts))


def _part(text: str) -> str:
    """Text without spaces; of long text its hash, which no quoted text looks like, for "=" is always quoted."""
    quoted = quote(text, safe="/:@", errors="surrogatepass")
    if len(quoted) <= PART_CHARACTERS:
        return quoted
    return f"sha256={hashlib.sha256(quoted.encode()).hexdigest()}"


# --- the response ---------------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """A response as it is kept. ``body`` is None where it was too large."""

    status: int
    headers: Headers
    body: bytes | None


class RecordedCodec:
    """Responses as plain data. One without its body is refused: the task has then succeeded with its result lost.

    A verify hook, and a handler that ends its claim itself, may give a mapping with the fields of `Recorded`; or None,
    where nobody knows the response.
    """

    def encode(self, value: Recorded | Mapping[str, Any] | None, /) -> object:
        """The response as plain data."""
        if value is None:
            return None
        given = value if isinstance(value, Recorded) else Recorded(**value)
        if given.body is None:
            msg = f"the body of the response (status {given.status}) is larger than what is kept"
            raise ValueError(msg)
        # memoryview, because bytes(7) would be seven zeros
        headers = [(bytes(memoryview(name)), bytes(memoryview(field))) for name, field in given.headers]
        return {"status": int(given.status), "headers": headers, "body": bytes(memoryview(given.body))}

    def decode(self, data: Any, /) -> Recorded:  # noqa: ANN401 - plain data
        """The response again."""
        if data is None:
            msg = "the response is not known"
            raise ValueError(msg)
        return Recorded(data["status"], [(name, value) for name, value in data["headers"]], data["body"])


def end_to_end(headers: Iterable[tuple[bytes, bytes]], leave_out: frozenset[bytes]) -> Headers:
    """The headers that a replay may repeat: none of one connection, and none of ``leave_out``."""
    pairs = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    named = {
        one.strip().lower() for name, value in pairs if name == b"connection" for one in value.split(b",")
    }  # RFC 9110: also those that Connection lists
    dropped = HOP_BY_HOP | leave_out | named
    return [(name, value) for name, value in pairs if name not in dropped]
