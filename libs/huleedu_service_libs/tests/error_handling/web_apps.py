"""The same views in a Quart and in a FastAPI application, and answers that can be compared."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from quart import Quart
from quart import request as quart_request

from huleedu_service_libs.error_handling import fastapi, quart

BODY_LIMIT_BYTES = 64

View = Callable[[], object]


class Credentials(BaseModel):
    user: str
    password: int = Field(lt=10_000)


def quart_app(views: Mapping[str, View]) -> Quart:
    app = Quart("essays")
    app.config["SERVICE_NAME"] = "essay_service"
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT_BYTES
    quart.register_error_handlers(app)

    @app.get("/views/<name>")
    async def call(name: str) -> str:
        return str(views[name]())

    @app.post("/login")
    async def login() -> str:
        return Credentials.model_validate(await quart_request.get_json()).user

    return app


def fastapi_app(views: Mapping[str, View]) -> FastAPI:
    app = FastAPI(title="Essay Service", max_body_size=BODY_LIMIT_BYTES)
    fastapi.register_error_handlers(app)

    @app.get("/views/{name}")
    async def call(name: str) -> str:
        return str(views[name]())

    @app.post("/login")
    async def login(request: Request) -> str:
        return Credentials.model_validate(await request.json()).user

    @app.post("/login-as-parameter")
    async def login_as_parameter(credentials: Credentials) -> str:
        return credentials.user

    return app


@asynccontextmanager
async def client_of(app: Quart | FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    # What escapes from the application is raised here, and fails the test.
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type] # Quart's messages are typed
    async with httpx.AsyncClient(transport=transport, base_url="http://essays") as client:
        yield client


@dataclass(frozen=True)
class Answer:
    """An error response, whose frame is as it must always be; without what differs by nature."""

    status: int
    error: dict[str, Any]
    headers: dict[str, list[str]]


def answer(response: httpx.Response) -> Answer:
    assert response.headers.get_list("content-type") == ["application/json"]
    error = response.json()["error"]
    assert response.text == json.dumps({"error": error}, allow_nan=False)
    assert set(error) == {
        "code", "message", "correlation_id", "service", "timestamp", "details",
    }  # fmt: skip
    assert response.headers.get_list("x-correlation-id") == [error["correlation_id"]]
    assert datetime.fromisoformat(error.pop("timestamp")).tzinfo is not None
    names = [name for name in response.headers if name != "content-length"]
    return Answer(
        response.status_code, error, {name: response.headers.get_list(name) for name in names}
    )
