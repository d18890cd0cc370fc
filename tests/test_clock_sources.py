"""The sources of the clock check: real files, real bytes of the kernel's struct, a real command that answers."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

import pytest

from idemreg import Clock
from idemreg.clockcheck import chrony as chrony_room
from idemreg.clockcheck.chrony import chrony, interpret
from idemreg.clockcheck.hardware import hardware
from idemreg.clockcheck.kernel import TIME_ERROR, Timex, kernel
from idemreg.clockcheck.kernel import interpret as interpret_kernel
from idemreg.clockcheck.readings import Hardware, Reading
from idemreg.testing import ManualClock
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECOND = 1_000_000
NOW_S = 1_795_402_800


# --- the kernel -------------------------------------------------------------------------------------------------

STA_PLL, STA_UNSYNC, STA_CLOCKERR, STA_NANO = 0x0001, 0x0040, 0x1000, 0x2000

# struct timex of a 64-bit Linux, as the kernel filled it on a machine without NTP: status STA_UNSYNC, both errors 16 s.
UNSYNCHRONISED = bytes.fromhex(
    "0000000000000000000000000000000000000000000000000024f400000000000024f40000000000400000000000000002000000000000000100"
    "000000000000"
)


def timex(offset: int = 0, maxerror: int = 0, esterror: int = 0, status: int = STA_PLL) -> bytes:
    return bytes(Timex(0, offset, 0, maxerror, esterror, status)) + bytes(160)


def test_the_kernel_of_this_machine_answers() -> None:
    """Without a privilege, and with a struct that makes sense: a reading, or silence with its reason."""
    reading = kernel(Clock())
    assert reading.source == "kernel"
    assert reading.text
    assert reading.deviation_us is None or reading.bound_us < 3_600 * SECOND


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_long) != 8, reason="the bytes are those of a 64-bit system")
def test_an_unsynchronised_kernel_says_nothing() -> None:
    """The very bytes that a kernel without NTP gives."""
    assert interpret_kernel(TIME_ERROR, UNSYNCHRONISED).deviation_us is None
    assert interpret_kernel(0, UNSYNCHRONISED).deviation_us is None, "the status alone says so as well"


@pytest.mark.parametrize(
    ("state", "data"),
    [
        (TIME_ERROR, timex()),
        (0, timex(status=STA_UNSYNC)),
        (0, timex(status=STA_PLL | STA_UNSYNC | STA_NANO)),
        (0, timex(status=STA_CLOCKERR)),
    ],
)
def test_whoever_is_not_synchronised_says_nothing(state: int, data: bytes) -> None:
    """By the answer of the call, or by a bit of the status."""
    assert interpret_kernel(state, data).deviation_us is None


@pytest.mark.parametrize(
    ("data", "deviation_us"),
    [
        (timex(offset=1_500), -1_500),
        (timex(offset=-1_500), 1_500),
        (timex(offset=1_500_000, status=STA_PLL | STA_NANO), -1_500),
        (timex(offset=-49_999_600, status=STA_NANO), 50_000),
        (timex(offset=0), 0),
    ],
)
@pytest.mark.parametrize("state", [0, 1, 2, 3, 4])
def test_the_offset_is_what_is_still_to_be_added(state: int, data: bytes, deviation_us: int) -> None:
    """In microseconds, or by STA_NANO in nanoseconds; a leap second to come changes nothing."""
    assert interpret_kernel(state, data).deviation_us == deviation_us


def test_the_estimated_error_is_the_resolution_and_the_maximum_is_told() -> None:
    """The maximum grows between two words of the daemon: by it no clock were ever good."""
    reading = interpret_kernel(0, timex(offset=2_000, esterror=2_500, maxerror=800_000))
    assert (reading.resolution_us, reading.speaks, reading.bound_us) == (2_500, False, 2_500)
    assert "800.0 ms" in reading.text
    assert interpret_kernel(0, timex(esterror=-1)).resolution_us == 0


# --- chrony -----------------------------------------------------------------------------------------------------

TRACKING = (
    "C0A80001,192.168.0.1,3,1795402700.123456789,0.000012345,-0.000004000,0.000035822,-3.225,-0.000,0.129,"
    "0.013639022,0.001100737,64.2,Normal\n"
)


def tracking(**columns: str) -> str:
    places = {"correction": 4, "rms": 6, "delay": 10, "dispersion": 11, "leap": 13}
    words = TRACKING.strip().split(",")
    for name, word in columns.items():
        words[places[name]] = word
    return ",".join(words)


def test_chronys_line_is_a_reading() -> None:
    """A positive correction is still to be added, so the clock is behind; its long-term average is the resolution."""
    reading = interpret(TRACKING)
    assert (reading.source, reading.deviation_us, reading.resolution_us) == ("chrony", -12, 36)
    assert interpret(tracking(correction="-0.060000000")).deviation_us == 60_000
    assert "7.9 ms" in interpret(tracking(correction="0")).text


@pytest.mark.parametrize("leap", ["Insert second", "Delete second"])
def test_a_leap_second_to_come_changes_nothing(leap: str) -> None:
    """chrony is synchronised then."""
    assert interpret(tracking(leap=leap)).deviation_us == -12


@pytest.mark.parametrize(
    "output",
    [
        "",
        "\n",
        "506 Cannot talk to daemon\n",
        tracking(leap="Not synchronised"),
        tracking(leap="Invalid"),
        tracking(leap="normal"),
        tracking(correction=""),
        tracking(correction="nan"),
        tracking(correction="inf"),
        tracking(correction="1e300"),
        tracking(correction="0x1"),
        tracking(rms="fast"),
        TRACKING.strip() + ",1",
        TRACKING * 2,
        tracking(rms="0." + "0" * 2_000),
    ],
)
def test_a_line_of_another_form_says_nothing(output: str) -> None:
    """Nothing is guessed."""
    assert interpret(output).deviation_us is None


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a command `chronyc` on the PATH, and nothing else. It is a Python, which begins slowly among others."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(chrony_room, "PATIENCE_S", PATIENCE_S)

    def write(body: str) -> None:
        command = tmp_path / "chronyc"
        command.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        command.chmod(0o755)

    return write


def test_chronyc_is_asked_for_numbers(install: Callable[[str], None]) -> None:
    """As a command of the PATH, without names to be resolved, and as CSV."""
    install(f"assert sys.argv[1:] == ['-n', '-c', 'tracking']\nsys.stdout.write({TRACKING!r})")
    assert chrony(Clock()) == interpret(TRACKING)


@pytest.mark.parametrize(
    "body", ["sys.exit(1)", f"sys.stdout.write({TRACKING!r}); sys.exit(1)", "print('\\x1b[2J')", ""]
)
def test_a_chronyc_that_fails_says_nothing(install: Callable[[str], None], body: str) -> None:
    """An exit code, or an answer that is none."""
    install(body)
    assert chrony(Clock()).deviation_us is None


def test_a_chronyc_that_hangs_is_not_waited_for(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed after its time, and says nothing."""
    monkeypatch.setattr(chrony_room, "PATIENCE_S", 0.01)
    install("import signal; signal.pause()")
    assert chrony(Clock()) == Reading("chrony", None, text="it does not answer")


def test_without_chronyc_nobody_is_asked(install: Callable[[str], None], tmp_path: Path) -> None:
    """Its absence is normal; a file of the name that is no program is as good as none."""
    assert chrony(Clock()) == Reading("chrony", None, text="it is not installed")
    (tmp_path / "chronyc").write_bytes(b"\x7fELF")
    (tmp_path / "chronyc").chmod(0o755)
    assert chrony(Clock()).deviation_us is None


# --- the hardware clock -----------------------------------------------------------------------------------------


class Board:
    """/sys and /etc of a machine, as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = ManualClock(wall_us=NOW_S * SECOND + 500_000)

    def add(self, name: str, seconds: object, *, hctosys: int | None = None) -> None:
        folder = self.root / "sys/class/rtc" / name
        folder.mkdir(parents=True)
        (folder / "since_epoch").write_text(f"{seconds}\n")
        if hctosys is not None:
            (folder / "hctosys").write_text(f"{hctosys}\n")

    def say(self, lines: str) -> None:
        (self.root / "etc").mkdir()
        (self.root / "etc/adjtime").write_text(lines)

    def read(self) -> Hardware | Reading:
        return hardware(self.clock, sys=str(self.root / "sys"), etc=str(self.root / "etc"))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_machine_without_a_hardware_clock_is_normal(board: Board) -> None:
    """No folder, an empty folder, or other devices in it."""
    assert board.read() == Reading("hardware clock", None, text="there is none")
    (board.root / "sys/class/rtc").mkdir(parents=True)
    assert board.read() == Reading("hardware clock", None, text="there is none")
    board.add("rtcx", NOW_S)
    assert board.read() == Reading("hardware clock", None, text="there is none")


@pytest.mark.parametrize(("seconds", "ahead_us"), [(NOW_S, 0), (NOW_S - 60, 60 * SECOND), (NOW_S + 60, -60 * SECOND)])
def test_a_whole_second_means_its_middle(board: Board, seconds: int, ahead_us: int) -> None:
    """So what it says is half a second off at most; its resolution is a whole one."""
    board.add("rtc0", seconds)
    assert board.read() == Hardware(seconds * SECOND + 500_000, ahead_us, SECOND, None, "rtc0")


def test_the_one_that_the_system_is_set_from_is_read(board: Board) -> None:
    """Else the first by number."""
    board.add("rtc10", 10)
    board.add("rtc2", 2, hctosys=0)
    found = board.read()
    assert isinstance(found, Hardware)
    assert found.name == "rtc2"
    board.add("rtc3", 3, hctosys=1)
    found = board.read()
    assert isinstance(found, Hardware)
    assert found.name == "rtc3"


@pytest.mark.parametrize("said", ["", "-1", "1.5", "soon", "9" * 13, "١٢٣", "9" * 100])
def test_what_is_no_number_of_seconds_says_nothing(board: Board, said: str) -> None:
    """A clock that cannot be read is as good as none."""
    board.add("rtc0", said)
    assert board.read() == Reading("hardware clock", None, text="rtc0 cannot be read")


def test_a_hardware_clock_that_vanishes_says_nothing(board: Board) -> None:
    """Its file goes with its driver."""
    board.add("rtc0", NOW_S)
    os.unlink(board.root / "sys/class/rtc/rtc0/since_epoch")
    assert board.read() == Reading("hardware clock", None, text="rtc0 cannot be read")


@pytest.mark.parametrize(
    ("lines", "keeps_utc"),
    [
        ("0.0 0 0.0\n0\nUTC\n", True),
        ("0.0 0 0.0\n0\nLOCAL\n", False),
        ("0.0 0 0.0\n0\nLOCAL", False),
        ("0.0 0 0.0\n0\n", None),
        ("0.0 0 0.0\n0\nlocal\n", None),
        ("", None),
    ],
)
def test_adjtime_says_whether_it_keeps_local_time(board: Board, lines: str, *, keeps_utc: bool | None) -> None:
    """By its third line, as hwclock and systemd read it."""
    board.add("rtc0", NOW_S)
    board.say(lines)
    found = board.read()
    assert isinstance(found, Hardware)
    assert found.keeps_utc is keeps_utc


def test_a_read_that_took_long_is_vague(board: Board) -> None:
    """What passed while the chip answered adds to the resolution."""
    board.add("rtc0", NOW_S)

    class Slow(ManualClock):
        def wall_us(self) -> int:
            self.advance(0.01)
            return super().wall_us()

    board.clock = Slow(wall_us=NOW_S * SECOND + 500_000)
    found = board.read()
    assert isinstance(found, Hardware)
    assert found.resolution_us == SECOND + 5_000


def test_the_hardware_clock_of_this_machine_answers() -> None:
    """A time, or silence with its reason."""
    found = hardware(Clock())
    assert isinstance(found, Hardware) or found.text
