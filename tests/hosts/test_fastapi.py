"""Under FastAPI: plain and coroutine endpoints, background tasks, and two server processes on one file."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.testclient import TestClient
from pydantic import BaseModel

from idemreg import (
    AsyncClaim,
    AsyncRegistry,
    IdemregError,
    Registry,
    Status,
    TaskDoneError,
    TaskIdError,
    TaskRunningError,
    current_claim,
)
from tests.support.processes import PATIENCE_S, Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("nothing_on_the_event_loop")

Key = Annotated[str, Header(alias="Idempotency-Key")]


class Order(BaseModel):
    sku: str
    count: int = 1


class User:
    """Has no canonical bytes, like most of what a dependency gives."""

    def __init__(self, name: str) -> None:
        self.name = name


def user_of(request: Request) -> User:
    return User(request.headers.get("User", "nobody"))


Caller = Annotated[User, Depends(user_of)]


async def claim_of(key: Key, request: Request) -> AsyncIterator[AsyncClaim]:
    async with request.app.state.registry.claim(key) as claim:
        yield claim


Claimed = Annotated[Any, Depends(claim_of)]


def what_counts(key: str, order: Order, *_: object, **__: object) -> object:
    return order.model_dump(mode="json")


class PydanticCodec:
    """As in docs/fastapi.md: models as results."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model

    def encode(self, value: Any, /) -> object:
        return value.model_dump(mode="json")

    def decode(self, data: Any, /) -> Any:
        return self.model.model_validate(data)


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.exception_handler(IdemregError)
    def refused(_request: Request, error: IdemregError) -> Response:
        status = 400 if isinstance(error, TaskIdError) else 503 if error.retryable else 409
        return Response(error.code, status, {"Retry-After": "1"} if error.retryable else None)

    @app.exception_handler(TaskDoneError)
    def known(_request: Request, error: TaskDoneError) -> Response:
        assert error.outcome is not None
        return Response(error.outcome.result, 208)

    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture(params=["def", "async def"])
def endpoint(request: pytest.FixtureRequest, app: FastAPI, registry: Registry) -> list[str]:
    """POST /orders in both colours, under one contract: the tests below are run for each. Returns the witness."""
    entered: list[str] = []
    options: dict[str, Any] = {"checksum": what_counts, "release_on": HTTPException}

    def work(key: str, order: Order, user: User, request: Request) -> dict[str, object]:
        entered.append(key)
        if order.count == 0:
            raise HTTPException(422, "nothing to send")
        return {"sku": order.sku, "for": user.name, "by": request.method, "attempt": current_claim().attempt}

    if request.param == "def":

        @app.post("/orders", status_code=201)
        @registry.idempotent("order:{key}", **options)
        def post_order(key: Key, order: Order, user: Caller, request: Request) -> dict[str, object]:
            return work(key, order, user, request)

    else:

        @app.post("/orders", status_code=201)
        @AsyncRegistry.of(registry).idempotent("order:{key}", **options)
        async def post_order_async(key: Key, order: Order, user: Caller, request: Request) -> dict[str, object]:
            return work(key, order, user, request)

    return entered


def post(client: TestClient, key: str | None, body: object, **headers: str) -> tuple[int, Any]:
    named = headers if key is None else {"Idempotency-Key": key, **headers}
    response = client.post("/orders", json=body, headers=named)
    return response.status_code, response.json() if "json" in response.headers.get(
        "content-type", ""
    ) else response.text


def test_a_repeated_request_runs_once(endpoint: list[str], client: TestClient) -> None:
    """The same key and body: one body entered, and the same answer; what is injected does not count."""
    answer = (201, {"sku": "lamp", "for": "ada", "by": "POST", "attempt": 1})
    assert post(client, "k-1", {"sku": "lamp"}, User="ada") == answer
    assert post(client, "k-1", {"sku": "lamp", "count": 1}, User="grace") == answer
    assert endpoint == ["k-1"]


def test_another_body_is_refused(endpoint: list[str], client: TestClient) -> None:
    """The same key with another body is a conflict, and runs nothing."""
    post(client, "k-1", {"sku": "lamp"})
    assert post(client, "k-1", {"sku": "desk"}) == (409, "mismatch")
    assert endpoint == ["k-1"]


def test_fastapi_validates_before_the_claim(endpoint: list[str], client: TestClient, registry: Registry) -> None:
    """What FastAPI refuses (a body or key that is missing or wrong) is its 422, and leaves no row; an empty key too."""
    for key, body in ((None, {"sku": "lamp"}), ("k-1", {"count": 1}), ("k-1", {"sku": "lamp", "count": "many"})):
        status, answer = post(client, key, body)
        assert (status, answer["detail"][0]["type"] in {"missing", "int_parsing"}) == (422, True)
    assert post(client, "", {"sku": "lamp"}) == (400, "task-id")
    assert endpoint == []
    assert registry.count() == {}


def test_an_http_exception_can_release(endpoint: list[str], client: TestClient, registry: Registry) -> None:
    """A refusal by the endpoint reaches the client as it is, and costs no attempt."""
    for _ in range(12):  # more than max_attempts
        assert post(client, "k-1", {"sku": "lamp", "count": 0}) == (422, {"detail": "nothing to send"})
    assert registry.count() == {Status.PENDING: 1}
    assert len(endpoint) == 12


def test_the_schema_is_the_functions_own(endpoint: list[str], app: FastAPI) -> None:
    """The OpenAPI page has the header, the body and the answer of the decorated function."""
    operation = app.openapi()["paths"]["/orders"]["post"]
    assert [one["name"] for one in operation["parameters"]] == ["Idempotency-Key"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Order"}
    assert operation["responses"]["201"]["content"]["application/json"]["schema"]["type"] == "object"


def test_what_is_injected_is_excluded(app: FastAPI, client: TestClient, registry: Registry) -> None:
    """A dependency in `exclude=` does not count; forgotten, it is refused at the first request, before the body."""

    @app.post("/greet/{name}")
    @registry.idempotent("greet:{name}", exclude=("user", "request"))
    def greet(name: str, user: Caller, request: Request) -> str:
        return f"{user.name} greets {name}"

    @app.post("/forgotten/{name}")
    @registry.idempotent("forgotten:{name}")
    def forgotten(name: str, user: Caller) -> None: ...

    assert [client.post("/greet/you", headers={"User": name}).json() for name in ("ada", "grace")] == [
        "ada greets you"
    ] * 2
    assert client.post("/forgotten/you").text == "argument"
    assert registry.count() == {Status.SUCCEEDED: 1}


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_twin_at_the_same_time_is_told_to_come_later(
    colour: str, app: FastAPI, client: TestClient, registry: Registry
) -> None:
    """While the first request is in the body, its twin gets 503 and Retry-After; afterwards the first one's answer."""
    inside, refused = threading.Event(), threading.Event()
    entered = []

    def wait_for_the_refusal(key: str) -> dict[str, str]:
        entered.append(key)
        inside.set()
        assert refused.wait(PATIENCE_S)
        return {"key": key}

    if colour == "def":

        @app.post("/slow/{key}")
        @registry.idempotent("slow:{key}")
        def slow(key: str) -> dict[str, str]:
            return wait_for_the_refusal(key)

    else:

        @app.post("/slow/{key}")
        @AsyncRegistry.of(registry).idempotent("slow:{key}")
        async def slow_async(key: str) -> dict[str, str]:
            import anyio.to_thread  # noqa: PLC0415 - comes with FastAPI

            return await anyio.to_thread.run_sync(wait_for_the_refusal, key)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/slow/a")
        assert inside.wait(PATIENCE_S)
        try:
            twin = client.post("/slow/a")
        finally:
            refused.set()
        assert (twin.status_code, twin.text, twin.headers["Retry-After"]) == (503, TaskRunningError.code, "1")
        assert first.result(PATIENCE_S).json() == client.post("/slow/a").json() == {"key": "a"}
    assert entered == ["a"]


def test_a_model_is_a_result(app: FastAPI, client: TestClient, registry: Registry) -> None:
    """With a codec an endpoint returns its model, also when it is replayed."""

    @app.post("/models/{sku}")
    @registry.idempotent("model:{sku}", result=PydanticCodec(Order))
    def model(sku: str) -> Order:
        return Order(sku=sku, count=2)

    assert [client.post("/models/lamp").json() for _ in range(2)] == [{"sku": "lamp", "count": 2}] * 2
    assert model("lamp") == Order(sku="lamp", count=2)


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_background_task_runs_once(colour: str, app: FastAPI, client: TestClient, registry: Registry) -> None:
    """Two deliveries each add the task; the second finds it done. A delivery after a failure is the next attempt."""
    attempts = []

    def work() -> None:
        attempts.append(current_claim().attempt)
        if len(attempts) == 1:
            raise ConnectionError

    @registry.idempotent("mail:{delivery}")
    def mail(delivery: str) -> None:
        work()

    @AsyncRegistry.of(registry).idempotent("mail, async:{delivery}")
    async def mail_async(delivery: str) -> None:
        work()

    @app.post("/hooks/{delivery}", status_code=202)
    def hook(delivery: str, background: BackgroundTasks) -> None:
        background.add_task(mail if colour == "def" else mail_async, delivery)

    with pytest.raises(ConnectionError):
        client.post("/hooks/a")
    assert [client.post("/hooks/a").status_code for _ in range(2)] == [202, 202]
    assert attempts == [1, 2]


def test_a_background_task_that_was_announced_is_seen(app: FastAPI, client: TestClient, registry: Registry) -> None:
    """`add` before the answer: what was promised by 202 has a row, even if the server dies before it starts."""

    @registry.idempotent("mail:{delivery}")
    def mail(delivery: str) -> None: ...

    @app.post("/hooks/{delivery}", status_code=202)
    def hook(delivery: str) -> None:
        mail.add(delivery)  # and the server dies here

    assert client.post("/hooks/a").status_code == 202
    assert [task.task_id for task in registry.tasks(status=Status.PENDING)] == ["mail:a"]


def test_a_duplicate_can_be_told(app: FastAPI, client: TestClient, registry: Registry) -> None:
    """With on_duplicate="raise" a handler answers duplicates in its own way, with the stored outcome at hand."""

    @app.post("/tell/{key}")
    @registry.idempotent("tell:{key}", on_duplicate="raise")
    def tell(key: str) -> str:
        return f"done {key}"

    assert [client.post("/tell/a").status_code for _ in range(2)] == [200, 208]


def test_a_claim_in_a_dependency_ends_with_its_request(path: Path) -> None:
    """A coroutine dependency holds a claim for an endpoint in another thread, and its block stores the end."""
    registry = Registry(path, durability="normal")
    app = FastAPI()
    app.state.registry = AsyncRegistry.of(registry)

    @app.post("/")
    def endpoint(claim: Claimed) -> None:
        claim.result = claim.task_id

    assert TestClient(app).post("/", headers={"Idempotency-Key": "k"}).status_code == 200
    task = registry.get("k")
    assert task is not None
    assert (task.status, task.result) == (Status.SUCCEEDED, '"k"')
    registry.close()


def test_two_processes_handle_a_request_once(path: Path) -> None:
    """Two servers, as two workers of one service: every request reaches both at once, and one of them handles it."""
    source = """
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        from idemreg import AsyncRegistry

        app = FastAPI()
        registry = AsyncRegistry(sys.argv[1], durability="normal")

        @app.post("/orders/{key}")
        @registry.idempotent("order:{key}", wait=60)
        async def order(key: int) -> dict:
            with open(sys.argv[1] + ".witness", "a") as file:
                file.write(f"{key}\\n")
            return {"key": key, "pid": os.getpid()}

        with TestClient(app) as client:
            say("ready")
            wait()
            for key in range(20):
                say(client.post(f"/orders/{key}").text)
            client.portal.call(registry.close)
    """
    with Script(source, path) as one, Script(source, path) as other:
        for script in (one, other):
            script.expect("ready")
        for script in (one, other):
            script.go()
        assert [one.line() for _ in range(20)] == [other.line() for _ in range(20)]
        assert (one.end(), other.end()) == (0, 0)
    handled = path.with_name(path.name + ".witness").read_text("utf-8").split()
    assert sorted(map(int, handled)) == list(range(20))
