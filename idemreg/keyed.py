"""A secret for checksums: HMAC-SHA256 in place of SHA-256, for arguments that could be guessed.

Whoever reads the file could try every birthday or card number until the plain checksum fits. With a key that he does
not have, he can try nothing. The key is never stored. A note of 16 bits in the file tells a wrong key, all but one in
65,536; it is as short as that so that it confirms nobody's guess of a weak one.
"""

# Not `from __future__ import annotations`: of a named tuple's fields typing compiles each annotation that is text.

import functools
from typing import Any, Final, Literal, NamedTuple, Self

from idemreg.counted import counted

__all__ = ["OPEN", "ChecksumKey", "ErrorDetail", "KeyNote", "Secrecy"]

ErrorDetail = Literal["traceback", "message", "type"]

ERROR_DETAILS: Final = ("traceback", "message", "type")

MIN_KEY_BYTES: Final = 16
NOTE_BYTES: Final = 2
_NOTED: Final = b"idemreg: which key the checksums of this registry are made with"


class KeyNote(NamedTuple):
    """The note that a file must have; None: that of a registry whose checksums have no key."""

    text: str | None


class ChecksumKey:
    """The key. Neither its text nor a traceback shows it."""

    __slots__ = ("_key",)

    def __init__(self, key: str | bytes) -> None:
        """ValueError where it is shorter than 16 bytes; a text counts by its UTF-8."""
        given: object = key
        if not isinstance(given, str | bytes):
            msg = f"checksum_key is text or bytes, not {type(key).__name__}"
            raise TypeError(msg)
        self._key = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        if len(self._key) < MIN_KEY_BYTES:
            msg = f"checksum_key has {counted(len(self._key), 'byte')}: take at least {MIN_KEY_BYTES}, at random"
            raise ValueError(msg)

    def __repr__(self) -> str:
        return "ChecksumKey(...)"

    def digest(self, content: bytes) -> str:
        """HMAC-SHA256 as 64 hexadecimal digits."""
        found: bytes = _hmac()(self._key, content, "sha256")
        return found.hex()

    @property
    def note(self) -> str:
        """What the file keeps of it."""
        return self.digest(_NOTED)[: 2 * NOTE_BYTES]


class Secrecy(NamedTuple):
    """What of a call may be stored. ``error_detail``: of an error its type, its message, or where it came from too."""

    key: ChecksumKey | None = None
    error_detail: ErrorDetail = "traceback"

    @classmethod
    def of(cls, checksum_key: str | bytes | None, error_detail: ErrorDetail) -> Self:
        """Check what the registry was given; ValueError or TypeError name the option."""
        if error_detail not in ERROR_DETAILS:
            msg = f"error_detail is one of {', '.join(map(repr, ERROR_DETAILS))}, not {error_detail!r}"
            raise ValueError(msg)
        return cls(None if checksum_key is None else ChecksumKey(checksum_key), error_detail)


OPEN: Final = Secrecy()


@functools.cache
def _hmac() -> Any:  # noqa: ANN401 - what hmac has
    import hmac  # noqa: PLC0415 - of OpenSSL, which a command such as `idemreg show` need not pay

    return hmac.digest
