"""Text for people: nothing of what is stored can act on a terminal, and every line fits."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idemreg.cli.render import age, local_time, utc_time
from idemreg.cli.text import escape, escape_lines, fold, pad, shorten, width

# Control characters, marks that reorder text, wide and combining characters: more often than by chance.
HOSTILE = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b\x07\x7f\x9b\n\r\t\u202e\u2066\u200d\ufeff漢字e\u0301👩\ud800"))
)


@given(HOSTILE)
def test_escaped_text_is_inert(text: str) -> None:
    """No escaped text holds a control, format or surrogate character, or a line end."""
    bad = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not [one for one in escape(text) if unicodedata.category(one) in bad]
    assert not [one for line in escape_lines(text) for one in line if unicodedata.category(one) in bad]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eevil", "\\u202eevil"),
        ("a\u200db", "a\\u200db"),
        ("\x9b2J", "\\x9b2J"),
        ("\udcff", "\\udcff"),
        ("漢字 é\u3000x", "漢字 é\u3000x"),
    ],
)
def test_escapes_are_readable(text: str, shown: str) -> None:
    """What cannot be seen is spelled out, and the scripts of the world are left alone."""
    assert escape(text) == shown


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("漢字", 4), ("e\u0301", 1), ("한", 2), ("ｱ", 1), ("", 0)])
def test_width(text: str, columns: int) -> None:
    """Wide characters take two columns, combining ones none."""
    assert width(text) == columns


@given(HOSTILE.map(escape), st.integers(0, 60))
def test_shortened_text_fits(text: str, to: int) -> None:
    """Shortened text is never wider than asked, and what fits is not touched."""
    short = shorten(text, to)
    assert width(short) <= to
    assert (short == text) == (width(text) <= to)
    assert width(pad(short, to)) == to


def test_both_ends_stay() -> None:
    """An id loses its middle: ids that differ at either end are still told apart."""
    assert shorten("backup:shop:2026-11-23", 12) == "backup…11-23"


@given(HOSTILE.map(escape), st.integers(4, 60))
def test_folded_lines_fit(text: str, to: int) -> None:
    """Folded text loses nothing but spaces, and no line is too wide."""
    lines = fold(text, to)
    assert all(width(line) <= to for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_any_stored_time_can_be_shown(time_us: int, now_us: int) -> None:
    """A date that no calendar has, from a broken clock, does not keep a row from being shown."""
    assert utc_time(time_us)
    assert local_time(time_us)
    assert age(time_us, now_us)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59, "59s"), (60, "1m"), (7_200, "2h"), (86_400 * 3, "3d"), (-7_200, "-2h")]
)
def test_age(seconds: int, shown: str) -> None:
    """An age is in its largest whole unit; a time to come is told as one."""
    assert age(0, seconds * 1_000_000) == shown


def test_utc_time() -> None:
    """Times in JSON are ISO 8601 in UTC, to the microsecond."""
    assert utc_time(1_795_452_734_401_049) == "2026-11-23T16:52:14.401049Z"
