"""Inside other people's workers: Celery's prefork pool, multiprocessing's fork pool, and threads of an executor."""

from __future__ import annotations

import json
import os
import pickle
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from idemreg import ChecksumMismatchError, Registry, Status
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Tasks as a user would write them. The registry is open, and an owner, before Celery forks its workers.
CELERY_JOBS = """
    import json
    import os
    import signal
    import time
    import uuid

    from billiard.pool import SIG_SOFT_TIMEOUT
    from celery import Celery
    from celery.exceptions import Retry, SoftTimeLimitExceeded
    from idemreg import Registry, current_claim
    from kombu.transport import filesystem

    FOLDER = os.path.dirname(__file__)

    # Kombu's own opens the file of a message where the worker looks for it, and fills it afterwards: a worker that
    # takes it in between reads nothing, and ends. Here a message appears whole.
    def put(channel, queue, payload, **_):
        name = f"{FOLDER}/queue/{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}"
        with open(f"{name}.part", "w") as file:
            json.dump(payload, file)
        os.rename(f"{name}.part", f"{name}.msg")

    filesystem.Channel._put = put

    app = Celery("celery_jobs", broker="filesystem://", backend=f"file://{FOLDER}/results")
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "data_folder_in": f"{FOLDER}/queue",
            "data_folder_out": f"{FOLDER}/queue",
            "control_folder": f"{FOLDER}/control",
            "processed_folder": f"{FOLDER}/processed",
            "store_processed": True,
            "polling_interval": 0.02,
        },
        result_extended=True,
        worker_lost_wait=0.2,  # seconds; how long Celery waits for a result of a worker that died
        worker_redirect_stdouts=False,
    )
    registry = Registry(f"{FOLDER}/jobs.db")

    def witness(word):
        with open(f"{FOLDER}/witness", "a") as file:
            file.write(f"{word} {os.getpid()}\\n")

    @app.task(name="issue")
    @registry.idempotent("coupon:{user}:{day}", wait=30)
    def issue(user: int, day: str, amount: int = 10) -> dict:
        witness(f"issue:{user}:{day}")
        return {"user": user, "day": day, "amount": amount}

    # wait=: Celery sends the message of the retry before Retry reaches the decorator, so it may come too early.
    @app.task(name="poll", bind=True, max_retries=5)
    @registry.idempotent("poll:{key}", release_on=Retry, wait=30)
    def poll(self, key: str) -> dict:
        witness(f"poll:{key}")
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return {"retries": self.request.retries, "attempt": current_claim().attempt}

    @app.task(name="die")
    @registry.idempotent("die:{key}")
    def die(key: str) -> None:
        witness(f"die:{key}")
        os.kill(os.getpid(), signal.SIGKILL)

    # From here on as docs/celery.md recommends: the broker delivers the message of a killed worker once more.
    @app.task(name="die_late", acks_late=True, reject_on_worker_lost=True)
    @registry.idempotent("die_late:{key}")
    def die_late(key: str) -> None:
        witness(f"die_late:{key}")
        os.kill(os.getpid(), signal.SIGKILL)

    @registry.idempotent("order:{order}")
    def ship(order: int) -> dict:
        witness(f"order:{order}")
        return {"parcel": os.getpid()}

    @app.task(name="ship_and_die", bind=True, acks_late=True, reject_on_worker_lost=True)
    def ship_and_die(self, order: int) -> dict:
        outcome = ship.call(order)
        witness(f"delivered:{self.request.id}")
        if not outcome.replayed:  # done, but never acknowledged
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome.result

    # The body tells itself that its time is over, as the pool does: a real limit may come before its claim.
    @app.task(name="limited", soft_time_limit=3_600)
    @registry.idempotent("limited:{key}", unknown_on=SoftTimeLimitExceeded)
    def limited(key: str) -> None:
        witness(f"limited:{key}")
        os.kill(os.getpid(), SIG_SOFT_TIMEOUT)
        signal.pause()

    # Each delivery leaves a byte before the decorator is entered; the body waits for two.
    met = os.open(f"{FOLDER}/met", os.O_RDWR)

    @app.task(name="meet", bind=True)
    def meet(self, key: str) -> int:
        witness(f"delivered:{self.request.id}")
        os.write(met, b"x")
        return meet_once(key)

    @registry.idempotent("meet:{key}", wait=50)
    def meet_once(key: str) -> int:
        witness(f"meet:{key}")
        for _ in range(2):
            os.read(met, 1)
        return os.getpid()
"""

CELERY_WORKER = """
    sys.path.insert(0, sys.argv[1])
    from celery.signals import worker_ready
    from celery_jobs import app, registry

    registry.run("the parent was here", lambda: None)
    worker_ready.connect(lambda **_: say("ready", os.getpid()), weak=False)
    app.worker_main(["worker", "--pool=prefork", "--concurrency=2", "--loglevel=CRITICAL", "--without-gossip",
                     "--without-mingle", "--without-heartbeat"])
"""

# Sends what the test asks for, and tells the result; Celery itself waits for it.
CELERY_CLIENT = """
    import json
    sys.path.insert(0, sys.argv[1])
    from celery_jobs import app

    sent = {}
    say("ready")
    while line := wait():
        action, name, args, kwargs = json.loads(line)
        if action == "send":
            try:
                result = app.tasks[name].apply_async(tuple(args), kwargs)
            except TypeError as error:
                say(json.dumps({"error": "TypeError", "text": str(error)}))
            else:
                sent[result.id] = result
                say(json.dumps({"id": result.id}))
        else:
            value = sent[name].get(timeout=50, propagate=False)
            is_error = isinstance(value, BaseException)
            say(json.dumps({"error": type(value).__name__} if is_error else {"value": value}))
"""


class Celery:
    """A worker and a client, each a process of its own, and what the jobs witnessed."""

    def __init__(self, folder: Path, worker: Script, client: Script, worker_pid: int) -> None:
        self.folder, self.worker, self.client, self.worker_pid = folder, worker, client, worker_pid

    def ask(self, *question: object) -> dict[str, Any]:
        self.client.go(json.dumps(question))
        answer: dict[str, Any] = json.loads(self.client.line())
        return answer

    def send(self, task: str, *args: object, **kwargs: object) -> dict[str, Any]:
        return self.ask("send", task, args, kwargs)

    def result(self, sent: dict[str, Any]) -> dict[str, Any]:
        return self.ask("get", sent["id"], (), {})

    def witnessed(self, word: str) -> list[int]:
        """The processes in which the body was entered."""
        lines = [line.split() for line in (self.folder / "witness").read_text("utf-8").splitlines()]
        return [int(pid) for one, pid in lines if one == word]


@pytest.fixture(scope="module")
def celery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Celery]:
    folder = tmp_path_factory.mktemp("celery")
    for name in ("queue", "control", "processed", "results"):
        (folder / name).mkdir()
    os.mkfifo(folder / "met")
    (folder / "celery_jobs.py").write_text(textwrap.dedent(CELERY_JOBS), "utf-8")
    with Script(CELERY_WORKER, folder) as worker:
        while not (line := worker.line()).startswith("ready"):
            pass  # of Celery's banner
        with Script(CELERY_CLIENT, folder) as client:
            client.expect("ready")
            yield Celery(folder, worker, client, int(line.split()[1]))
        worker.process.terminate()  # a warm shutdown: it ends its pool
        assert worker.end() == 0


def test_a_celery_task_that_is_delivered_twice_runs_once(celery: Celery) -> None:
    """Two messages, in any of the forked workers: one execution, and both results are the first one's."""
    sent = [celery.send("issue", 7, "2026-11-23") for _ in range(2)] + [celery.send("issue", user=7, day="2026-11-23")]
    for one in sent:
        assert celery.result(one) == {"value": {"user": 7, "day": "2026-11-23", "amount": 10}}
    (pid,) = celery.witnessed("issue:7:2026-11-23")
    assert pid != celery.worker_pid


def test_a_celery_task_with_other_arguments_is_refused(celery: Celery) -> None:
    """A message with other arguments under the same task_id does not run, and Celery stores why."""
    celery.result(celery.send("issue", 8, "2026-11-23"))
    assert celery.result(celery.send("issue", 8, "2026-11-23", amount=99)) == {"error": "ChecksumMismatchError"}
    assert len(celery.witnessed("issue:8:2026-11-23")) == 1


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1,), {}), ((1, "day", 10, "more"), {}), ((1, "day"), {"colour": "red"})]
)
def test_celery_still_checks_the_arguments(celery: Celery, args: tuple[object, ...], kwargs: dict[str, str]) -> None:
    """A call that does not fit the function's signature is a TypeError where it is sent, as without the decorator."""
    answer = celery.send("issue", *args, **kwargs)
    assert answer["error"] == "TypeError"
    assert "issue()" in answer["text"]


def test_a_celery_retry_releases_the_claim(celery: Celery) -> None:
    """Retry is no failure: each retry is the first attempt still, and the last one's result is stored."""
    assert celery.result(celery.send("poll", "a")) == {"value": {"retries": 2, "attempt": 1}}
    assert len(celery.witnessed("poll:a")) == 3


def test_a_killed_celery_worker_leaves_unknown(celery: Celery) -> None:
    """A worker that dies in mid-job is not repeated by the next message, which Celery's new worker handles."""
    assert celery.result(celery.send("die", "a")) == {"error": "WorkerLostError"}
    assert celery.result(celery.send("die", "a")) == {"error": "TaskUnknownError"}
    assert len(celery.witnessed("die:a")) == 1
    with Registry(celery.folder / "jobs.db", create=False) as registry:
        task = registry.get("die:a")
        assert task is not None
        assert task.status is Status.UNKNOWN


def test_two_celery_processes_share_one_execution(celery: Celery) -> None:
    """Two processes of the pool have a message of one task at once: one runs it, the other waits for its result."""
    sent = [celery.send("meet", "a") for _ in range(2)]
    first, second = (celery.result(one) for one in sent)
    assert first == second == {"value": celery.witnessed("meet:a")[0]}
    assert len(celery.witnessed("meet:a")) == 1
    processes = {pid for one in sent for pid in celery.witnessed(f"delivered:{one['id']}")}
    assert len(processes) == 2
    assert celery.worker_pid not in processes


def test_the_message_of_a_killed_celery_worker_comes_again(celery: Celery) -> None:
    """With acks_late and reject_on_worker_lost the broker delivers it once more, and what is in doubt does not run."""
    assert celery.result(celery.send("die_late", "a")) == {"error": "TaskUnknownError"}
    assert len(celery.witnessed("die_late:a")) == 1
    with Registry(celery.folder / "jobs.db", create=False) as registry:
        task = registry.get("die_late:a")
        assert task is not None
        assert task.status is Status.UNKNOWN


def test_a_celery_worker_that_dies_behind_its_job(celery: Celery) -> None:
    """Done, and killed before the message was acknowledged: its second delivery gets the result, and nothing runs."""
    sent = celery.send("ship_and_die", 7)
    (pid,) = celery.result(sent)["value"].values()
    assert celery.witnessed("order:7") == [pid]
    first, second = celery.witnessed(f"delivered:{sent['id']}")
    assert first == pid != second


def test_a_soft_time_limit_of_celery_leaves_unknown(celery: Celery) -> None:
    """The limit is an error in mid-job, which unknown_on takes for what it is: nobody knows, and nothing runs again."""
    assert celery.result(celery.send("limited", "a")) == {"error": "SoftTimeLimitExceeded"}
    assert celery.result(celery.send("limited", "a")) == {"error": "TaskUnknownError"}
    assert len(celery.witnessed("limited:a")) == 1


# --- multiprocessing ----------------------------------------------------------------------------------------------


def test_a_fork_pool_runs_each_task_once(path: Path) -> None:
    """A registry that was open and in use before the fork serves the pool, and its parent afterwards."""
    with Script(
        """
        import multiprocessing
        from idemreg import Registry

        registry = Registry(sys.argv[1])

        @registry.idempotent("square:{number}", wait=30)
        def square(number: int) -> int:
            with open(sys.argv[1] + ".witness", "a") as file:
                file.write(f"{number} {os.getpid()}\\n")
            return number * number

        square(0)
        with registry.claim("held over the fork") as claim:
            with multiprocessing.get_context("fork").Pool(4) as pool:
                assert pool.map(square, [*range(50)] * 4, chunksize=1) == [n * n for n in range(50)] * 4
        assert [square(n) for n in range(50)] == [n * n for n in range(50)]
        say("done", os.getpid())
        """,
        path,
    ) as script:
        word, parent = script.line().split()
        assert word == "done"
        assert script.end() == 0
    runs = [line.split() for line in path.with_name(path.name + ".witness").read_text("utf-8").splitlines()]
    assert sorted(int(number) for number, _ in runs) == list(range(50))
    assert [number for number, pid in runs if pid == parent] == ["0"]
    with Registry(path, create=False) as registry:
        assert registry.count() == {Status.SUCCEEDED: 51}


def test_errors_cross_processes(registry: Registry) -> None:
    """An error that a pool sends home keeps its class, its task and its advice."""
    registry.run("task", lambda: None, payload=1, name="")
    with pytest.raises(ChecksumMismatchError) as caught:
        registry.run("task", lambda: None, payload=2, name="")
    home = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert type(home) is ChecksumMismatchError
    assert (home.task_id, home.message, home.hint) == ("task", caught.value.message, caught.value.hint)


# --- threads ------------------------------------------------------------------------------------------------------


def test_threads_of_an_executor_run_each_task_once(registry: Registry) -> None:
    """Eight threads on one registry, each task asked for ten times: one execution, and equal results for all."""
    entered = []

    @registry.idempotent("square:{number}", wait=30)
    def square(number: int) -> dict[str, int]:
        entered.append(number)
        return {"square": number * number}

    numbers = [*range(30)] * 10
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(square, numbers))
    assert results == [{"square": number * number} for number in numbers]
    assert sorted(entered) == list(range(30))
    assert registry.count() == {Status.SUCCEEDED: 30}


def test_threads_with_a_registry_each_run_each_task_once(path: Path) -> None:
    """Handles on one file in one process exclude each other as processes do."""
    entered = []

    def square(number: int) -> int:
        entered.append(number)
        return number * number

    def work(numbers: list[int]) -> list[int]:
        with Registry(path, durability="normal") as registry:
            return [registry.run(f"square:{n}", lambda n=n: square(n), name="square", wait=30).result for n in numbers]  # type: ignore[misc] # n is bound early

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, [[*range(30)]] * 8):
            assert results == [number * number for number in range(30)]
    assert sorted(entered) == list(range(30))
