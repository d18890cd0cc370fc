"""What every test may use: a registry on a path of its own, and the proof that it left nothing open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import trio
from hypothesis import HealthCheck, settings

from idemreg import Registry, faults
from idemreg.sqlite import forking
from idemreg.sqlite.backend import SqliteStore
from idemreg.sqlite.reading import Reader
from tests.support import compiled
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

settings.register_profile(
    "quick",
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# A run of `make test` tries what the last one has tried, so that it passes or fails by what was changed.
settings.register_profile("long", settings.get_profile("quick"), max_examples=5_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# What a shell starts to run behind it ignores these (`make test &`, `nohup`), and so would every process of a test.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

LEAVING_S = 5.0  # until a thread that ends what a test has begun has left the file


gc.disable()  # to go through all modules again and again as they are imported took a third of the collection


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage of each test is collected without looking at all of it again."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Nor at what pytest, a cache or a late import keeps from one test to the next, which grew to a third of the suite.

    Once nothing is left of the test, its fixtures included: what goes later, and in a cycle, is not collected at all.
    """
    result = yield
    gc.collect()
    gc.freeze()
    return result


@pytest.fixture(autouse=True)
def measured_to_the_end() -> Iterator[None]:
    """A test in which memory goes, or the stack, takes the measuring of coverage with it: the next has it again."""
    tracer = sys.gettrace()
    yield
    if sys.gettrace() is not tracer:
        sys.settrace(tracer)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """No connection outlives its test: apsw gives no ResourceWarning for one."""
    yield
    faults.disarm()
    gc.collect()
    # A thread of the registry's may be the last to leave, which closes the file a moment behind what the test has seen.
    with contextlib.suppress(AssertionError):
        until(lambda: not apsw.connections() and not forking.inside, LEAVING_S)
    left = apsw.connections()
    assert not left, f"connections left open: {left}"
    inside = dict(forking.inside)
    forking.inside.clear()
    assert not inside, f"left inside, so that each fork would wait for it: {inside}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter. Pytest's own they may not: whoever else runs it closes that to them."""
    with tempfile.TemporaryDirectory(prefix="idemreg-test-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - that is its purpose
        yield Path(folder)


@pytest.fixture
def open_registry(path: Path) -> Iterator[Callable[..., Registry]]:
    """Opens registries on one file, each a handle of its own, and closes them at the end."""
    opened: list[Registry] = []

    def make(**options: object) -> Registry:
        registry = Registry(path, **{"durability": "normal", **options})  # type: ignore[arg-type]
        opened.append(registry)
        return registry

    yield make
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(open_registry: Callable[..., Registry]) -> Registry:
    return open_registry()


@pytest.fixture
def nothing_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the store is made on a thread that runs no event loop."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            assert asyncio._get_running_loop() is None, f"{method.__name__} on the event loop"
            assert not trio.lowlevel.in_trio_run(), f"{method.__name__} on the event loop"
            return method(*args, **kwargs)

        return call

    for kind in (SqliteStore, Reader):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and name != "serve":  # which waits for nothing
                monkeypatch.setattr(kind, name, guarded(method))


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]:
    """Runs a coroutine function, under either library."""
    return trio.run if request.param == "trio" else lambda main: asyncio.run(main())


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def compiler() -> None:
    """Without a C compiler some faults cannot be made, which only a machine of a developer's may lack."""
    try:
        compiled.compiler()
    except compiled.NoCompilerError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real input beside the checkout. Where it is absent the test is skipped, except in CI, which must have it."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not (folder / "github-deliveries.jsonl").is_file():
        if os.environ.get("IDEMREG_REQUIRE_DATA"):
            pytest.fail(f"{folder} is absent, and IDEMREG_REQUIRE_DATA is set")
        pytest.skip(f"no real deliveries at {folder}")
    return folder
