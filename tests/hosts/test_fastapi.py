"""FastAPI: endpoints that run once, plain and asynchronous, with what FastAPI injects and validates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from idemreg import AsyncRegistry, ChecksumMismatchError, IdemregError
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ran: list[Any] = []


def session() -> object:
    return object()


async def refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, IdemregError)
    status = 422 if isinstance(error, ChecksumMismatchError) else 503 if error.retryable else 409
    return JSONResponse({"error": error.code, "detail": str(error)}, status)


@pytest.fixture
def client(path: Path) -> Iterator[TestClient]:
    """An application as a user would write it."""
    ran.clear()
    registry = AsyncRegistry(path, durability="normal")
    app = FastAPI()
    app.add_exception_handler(IdemregError, refuse)

    @app.post("/plain/{order}")
    @registry.idempotent("plain:{order}", exclude=("request", "db"), wait=PATIENCE_S)
    def plain(order: str, cents: int, request: Request, db: Annotated[object, Depends(session)]) -> dict[str, Any]:
        ran.append(("plain", order, request.method))
        return {"order": order, "cents": cents}

    @app.post("/async/{order}")
    @registry.idempotent("async:{order}", exclude=("request",), wait=PATIENCE_S)
    async def asynchronous(order: str, cents: int, request: Request) -> dict[str, Any]:
        await request.body()
        ran.append(("async", order, request.method))
        return {"order": order, "cents": cents}

    @registry.idempotent("mail:{order}")
    def mail(order: str) -> None:
        ran.append(("mail", order))

    @app.post("/background/{order}")
    async def background(order: str, tasks: BackgroundTasks) -> dict[str, bool]:
        tasks.add_task(mail, order)
        return {"accepted": True}

    with TestClient(app) as test_client:
        yield test_client
    registry.registry.close()


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_request_that_comes_again_is_replayed(client: TestClient, kind: str) -> None:
    """The same request has one effect and equal answers; another content under the same task is refused."""
    answers = [client.post(f"/{kind}/o-1?cents=5") for _ in range(3)]
    assert [(one.status_code, one.json()) for one in answers] == [(200, {"order": "o-1", "cents": 5})] * 3
    changed = client.post(f"/{kind}/o-1?cents=6")
    assert (changed.status_code, changed.json()["error"]) == (422, "mismatch")
    assert ran == [(kind, "o-1", "POST")]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_requests_at_once_have_one_effect(client: TestClient, kind: str) -> None:
    """Eight clients at the same instant: one runs, the others wait for it and replay it."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post(f"/{kind}/o-2?cents=5"), range(8)))
    assert {one.status_code for one in answers} == {200}
    assert len(ran) == 1


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_fastapi_refuses_claims_nothing(client: TestClient, kind: str) -> None:
    """Its own check of the arguments comes first: 422, and the task is free for the corrected request."""
    assert client.post(f"/{kind}/o-3?cents=many").status_code == 422
    assert client.post(f"/{kind}/o-3?cents=7").json() == {"order": "o-3", "cents": 7}


def test_background_tasks_run_once(client: TestClient) -> None:
    """A job behind the answer is idempotent like any other."""
    for _ in range(3):
        assert client.post("/background/o-4").json() == {"accepted": True}
    assert ran == [("mail", "o-4")]


def test_the_signature_is_the_endpoints_own(client: TestClient) -> None:
    """The OpenAPI page knows the parameters, and nothing of the registry."""
    parameters = client.get("/openapi.json").json()["paths"]["/async/{order}"]["post"]["parameters"]
    assert {one["name"] for one in parameters} == {"order", "cents"}
