"""The key of checksums by itself: which keys there are, what is made of them, and what is said of one that is none."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from idemreg.keyed import ERROR_DETAILS, OPEN, ChecksumKey, ErrorDetail, Secrecy

KEY = "correct horse battery staple"

# Frozen: both are stored. With another note a registry would refuse its own key, with another digest each of its tasks.
NOTE = "28c6"
DIGEST = "95aa990a61efa8ea4227537875b1962604bd5ee998188ba273904a61fdae4455"


def test_what_a_key_makes_is_frozen() -> None:
    """HMAC-SHA256 as hexadecimal digits, and of a constant text the first four of them."""
    assert ChecksumKey(KEY).digest(b'{"card":"4111"}') == DIGEST
    assert ChecksumKey(KEY).note == NOTE


@pytest.mark.parametrize(
    ("key", "content"),
    [
        (KEY, KEY.encode()),
        (KEY.encode(), KEY.encode()),
        ("é" * 8, "é".encode() * 8),
        ("\ud800" * 6, b"\xed\xa0\x80" * 6),  # of an environment that is no UTF-8
        (b"\xff" * 16, b"\xff" * 16),
        ("k" * 200, hashlib.sha256(b"k" * 200).digest()),  # as HMAC has it
    ],
)
def test_a_key_is_its_bytes(key: str | bytes, content: bytes) -> None:
    """A text counts by its UTF-8, also one that is none."""
    assert ChecksumKey(key).digest(b"x") == hmac.new(content, b"x", "sha256").hexdigest()


def test_sixteen_bytes_are_enough() -> None:
    """And one less is not, also of a text whose characters are fewer; the error says how many there are."""
    for key in ("k" * 16, b"k" * 16, "é" * 8):
        assert len(ChecksumKey(key).digest(b"")) == 64
    for short in ("k" * 15, b"k" * 15, "é" * 7 + "e"):
        with pytest.raises(ValueError) as error:
            ChecksumKey(short)
        assert str(error.value) == "checksum_key has 15 bytes: take at least 16, at random"


@pytest.mark.parametrize(("key", "kind"), [(16, "int"), (bytearray(32), "bytearray"), (None, "NoneType")])
def test_what_is_neither_text_nor_bytes_is_no_key(key: Any, kind: str) -> None:
    """The error says what it is, and not what is in it."""
    with pytest.raises(TypeError) as error:
        ChecksumKey(key)
    assert str(error.value) == f"checksum_key is text or bytes, not {kind}"


def test_a_key_is_not_shown() -> None:
    """Nor may anybody hang anything else on it."""
    assert repr(ChecksumKey(KEY)) == str(ChecksumKey(KEY)) == "ChecksumKey(...)"


@pytest.mark.parametrize("detail", ERROR_DETAILS)
def test_a_registry_says_what_may_be_stored(detail: ErrorDetail) -> None:
    """With a key or without one, and how much of an error."""
    assert Secrecy.of(None, detail) == Secrecy(None, detail)
    secrecy = Secrecy.of(KEY, detail)
    assert secrecy.error_detail == detail
    assert secrecy.key is not None
    assert secrecy.key.note == NOTE


def test_no_other_detail_is_known() -> None:
    """The error names the option, and those that there are."""
    with pytest.raises(ValueError) as error:
        Secrecy.of(KEY, "none")  # type: ignore[arg-type]
    assert str(error.value) == "error_detail is one of 'traceback', 'message', 'type', not 'none'"


def test_by_itself_all_is_told_and_there_is_no_key() -> None:
    """What a registry has that says nothing of either."""
    assert Secrecy() == OPEN == (None, "traceback")
