"""Real webhook deliveries, each delivered several times to consumers that are killed: one effect each."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pytest

from idemreg import Status
from tests.support.processes import Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from idemreg import Registry

SEED = 20_261_123
CONSUMERS = 4
MOST_COPIES = 4

# Where a consumer says that it is, and is killed.
PLACES = ("before the claim", "claimed", "in mid-transaction", "finish not committed", "committed")
DOOMED = 40  # deliveries whose consumers are killed, up to three of them one after another
CHANGED = 90

# A consumer as a user would write it: `claim`, effect and finish in one commit, and requeue what is retryable.
CONSUMER = """
    import hashlib, json
    from idemreg import ChecksumMismatchError, IdemregError, Registry, TaskDoneError, faults

    registry = Registry(sys.argv[1])
    deliveries = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]

    def at(reached):
        if reached == place:
            say("at", place)
            wait()  # for SIGKILL

    def consume(delivery, payload):
        at("before the claim")
        with registry.claim(delivery, payload=payload, name="deliver", on_crash="rerun") as claim:
            at("claimed")
            with claim.transaction() as tx:
                text = json.dumps(payload, sort_keys=True)
                row = (delivery, hashlib.sha256(text.encode()).hexdigest(), os.getpid())
                tx.execute("INSERT INTO effect VALUES (?, ?, ?)", row)
                claim.result = {"size": len(text)}
                at("in mid-transaction")
        at("committed")

    faults.arm("transaction.finished", lambda: at("finish not committed"))
    while message := wait():
        number, is_changed, place = json.loads(message)
        payload = deliveries[number]["payload"]
        try:
            consume(deliveries[number]["delivery"], payload | {"changed": True} if is_changed else payload)
        except ChecksumMismatchError:
            say("mismatch")
        except TaskDoneError as error:
            say("duplicate" if error.outcome.result else "duplicate without its result")
        except IdemregError as error:
            say("again" if error.retryable else repr(error))
        else:
            say("ran")
"""


class Message(NamedTuple):
    number: int
    is_changed: bool


@dataclass
class Broker:
    """Hands each message to one consumer at a time, until somebody acknowledges it: at least once."""

    deck: list[Message]
    kills: dict[int, list[str]]  # where the first consumers of this delivery are to die
    claimed: set[int] = field(default_factory=set)
    killed: Counter[str] = field(default_factory=Counter)
    lost_answers: set[int] = field(default_factory=set)
    answers: Counter[tuple[int, bool, str]] = field(default_factory=Counter)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.unacknowledged = len(self.deck)
        self.changed = threading.Condition()

    def take(self) -> tuple[Message, str | None] | None:
        """The next message, and where its consumer is to die; None when all is consumed.

        A changed payload comes second: a claim of the original was seen before.
        """
        with self.changed:
            while self.unacknowledged and self.failure is None:
                for index, message in enumerate(self.deck):
                    if not message.is_changed or message.number in self.claimed:
                        del self.deck[index]
                        places = [] if message.is_changed else self.kills.get(message.number)
                        return message, places.pop() if places else None
                assert self.changed.wait(60), "the other consumers are stuck"
            return None

    def put_back(self, message: Message) -> None:
        with self.changed:
            self.deck.append(message)
            self.changed.notify_all()

    def note_kill(self, message: Message, place: str) -> None:
        with self.changed:
            self.killed[place] += 1
            if place != "before the claim":
                self.claimed.add(message.number)
            if place == "committed":
                self.lost_answers.add(message.number)
        self.put_back(message)

    def acknowledge(self, message: Message, answer: str) -> None:
        with self.changed:
            self.claimed.add(message.number)
            self.answers[message.number, message.is_changed, answer] += 1
            self.unacknowledged -= 1
            self.changed.notify_all()

    def give_up(self, failure: BaseException) -> None:
        with self.changed:
            self.failure = failure
            self.changed.notify_all()


def consume(broker: Broker, start: Callable[[], Script]) -> None:
    """Drive one consumer, and its successors, until all messages are consumed."""
    consumer = start()
    try:
        while (taken := broker.take()) is not None:
            message, place = taken
            consumer.go(json.dumps([message.number, message.is_changed, place]))
            answer = consumer.line()
            if answer.startswith("at "):
                consumer.kill()
                consumer.__exit__(None, None, None)
                broker.note_kill(message, answer.removeprefix("at "))
                consumer = start()
            elif answer == "again":
                broker.put_back(message)
            else:
                broker.acknowledge(message, answer)
        consumer.go("")
        assert consumer.end() == 0
    except BaseException as failure:
        broker.give_up(failure)
        raise
    finally:
        consumer.__exit__(None, None, None)


def deal(deliveries: int, chance: random.Random) -> Broker:
    """Each delivery one to four times, some with a changed payload as well, in any order."""
    deck = [
        Message(number, is_changed=False) for number in range(deliveries) for _ in range(chance.randint(1, MOST_COPIES))
    ]
    deck += [Message(number, is_changed=True) for number in chance.sample(range(deliveries), CHANGED)]
    chance.shuffle(deck)
    doomed = chance.sample(range(deliveries), DOOMED)
    return Broker(deck, {number: chance.sample(PLACES, chance.randint(1, 3)) for number in doomed})


def in_file(registry: Registry, task_id: str, sql: str) -> list[tuple[object, ...]]:
    """Run a statement on the registry's file, through the registry: no other descriptor may be opened on it here."""
    with registry.claim(task_id) as claim, claim.transaction() as tx:
        return tx.execute(sql)


@pytest.fixture
def deliveries(shared_data: Path) -> list[dict[str, object]]:
    text = (shared_data / "github-deliveries.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_delivery_has_one_effect(
    registry: Registry, path: Path, shared_data: Path, deliveries: list[dict[str, object]]
) -> None:
    """Real deliveries, shuffled, to four consumers that are killed before, in and after their transactions: one effect.

    Every changed payload is refused, every row has succeeded, and no transaction is left open.
    """
    in_file(registry, "set-up", "CREATE TABLE effect (delivery TEXT, sha TEXT, pid INTEGER) STRICT")  # no UNIQUE
    broker = deal(len(deliveries), random.Random(SEED))  # noqa: S311 - repeatable, not secret
    messages = Counter(broker.deck)

    def start() -> Script:
        return Script(CONSUMER, path, shared_data / "github-deliveries.jsonl")

    with ThreadPoolExecutor(CONSUMERS) as pool:
        for future in [pool.submit(consume, broker, start) for _ in range(CONSUMERS)]:
            future.result()

    assert set(broker.killed) == set(PLACES), broker.killed
    assert {(number, changed): broker_sum(broker, number, changed) for number, changed in messages} == messages
    for number in range(len(deliveries)):
        assert_answers(broker, number)

    effects = in_file(registry, "count", "SELECT delivery, sha, count(*) FROM effect GROUP BY 1, 2 ORDER BY 1")
    assert effects == sorted((one["delivery"], sha_of(one["payload"]), 1) for one in deliveries)
    assert registry.count() == {Status.SUCCEEDED: len(deliveries) + 2}  # and the two of in_file
    assert not registry.checkpoint("TRUNCATE").busy  # it needs the file for itself


def broker_sum(broker: Broker, number: int, is_changed: bool) -> int:  # noqa: FBT001 - as a Message has it
    return sum(n for (one, changed, _), n in broker.answers.items() if (one, changed) == (number, is_changed))


def assert_answers(broker: Broker, number: int) -> None:
    """Changed payloads were refused; of the others one ran, and the rest were told what it had done."""
    answers = {key[1:]: n for key, n in broker.answers.items() if key[0] == number}
    assert {answer for is_changed, answer in answers if is_changed} <= {"mismatch"}
    assert {answer for is_changed, answer in answers if not is_changed} <= {"ran", "duplicate"}
    # A consumer that was killed behind its commit never told that it ran.
    assert answers.get((False, "ran"), 0) == (0 if number in broker.lost_answers else 1)


def sha_of(payload: object) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
