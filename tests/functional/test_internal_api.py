"""Control from inside: what other services do and see through `/internal/v1`."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from huleedu_service_libs.bounded_ids import MAX_ID_BYTES
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import assert_public_error, closed
from tests.functional.v1_tab import Tab, publish, v1_tab
from tests.service_process import HYPERCORN, ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "a-key-of-the-tests-with-more-than-32-bytes"
HEADERS = {"X-Internal-API-Key": KEY, "X-Service-ID": "result_service"}
V1 = "huleedu.notify.v1"
GIVE_UP_AFTER_S = 20
MAX_BODY_BYTES = 16 * 1024 * 1024
ROUTES = [
    ("POST", "/notifications"),
    ("POST", "/disconnections"),
    ("POST", "/revocations"),
    ("GET", "/presence"),
    ("GET", "/history?user_id=teacher-1"),
]
# Every field of the request that can be logged, and the header with the key.
ACCESS_LOG_FORMAT = 'access: %(h)s "%(r)s" "%(U)s" %(s)s %({{x-internal-api-key}}i)s'
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def api(service: ServiceProcess, **headers: str) -> httpx.AsyncClient:
    """A caller with the right key, unless other headers are given."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{service.port}/internal/v1",
        headers=headers or HEADERS,
        timeout=GIVE_UP_AFTER_S,
        trust_env=False,
    )


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error in a response, checked for completeness."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert_public_error(error, code)
    assert response.headers["x-correlation-id"] == error["correlation_id"]
    return error


def notification(number: int = 0, user: str = "teacher-1", **fields: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "event_type": "batch_status_updated",
        "data": {"n": number},
        **fields,
    }


def new_user() -> str:
    """A user whom no other test of the module has told anything."""
    return f"teacher-{uuid4()}"


async def until(
    condition: Callable[[dict[str, Any]], bool], client: httpx.AsyncClient, path: str
) -> dict[str, Any]:
    """Ask until the answer is as wanted; that answer."""
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while True:
            answer: dict[str, Any] = (await client.get(path)).json()
            if condition(answer):
                return answer


async def close_code(tab: Tab) -> int | None:
    """With which the server ends it."""
    with suppress(ConnectionClosed):
        while True:
            await tab.connection.recv()
    return tab.connection.close_code


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    """A service with the internal API on, which writes down all it can."""
    command = [
        *HYPERCORN[:-1],
        *("--access-logfile", "-", "--access-logformat", ACCESS_LOG_FORMAT),
        *("--error-logfile", "-", "--log-level", "DEBUG"),
        *("--bind", "127.0.0.1:{port}"),
    ]
    settings = {"INTERNAL_API_KEY": KEY}
    async with ServiceProcess(redis_server.url, settings=settings, command=command) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: ServiceProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A caller with the right key."""
    async with api(service) as caller:
        yield caller


# Who may call


@pytest.mark.parametrize("settings", [{}, {"INTERNAL_API_KEY": ""}], ids=["no key", "empty key"])
async def test_without_a_configured_key_the_api_is_not_there(
    redis_server: RedisServer, settings: dict[str, str]
) -> None:
    """Where no key is configured every internal path is unknown, whatever key is sent."""
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        for key in ("", KEY):
            async with api(service, **{**HEADERS, "X-Internal-API-Key": key}) as caller:
                for method, path in [*ROUTES, ("GET", "/openapi.json"), ("GET", "/nothing")]:
                    error_of(await caller.request(method, path), 404, "RESOURCE_NOT_FOUND")


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "keys",
    [[], [""], ["wrong"], [KEY[:-1]], [KEY + "x"], [KEY.upper()], [KEY, KEY], [KEY, "wrong"]],
    ids=["none", "empty", "wrong", "shorter", "longer", "upper case", "twice", "and a wrong one"],
)
async def test_a_missing_or_wrong_key_is_refused(
    service: ServiceProcess, method: str, path: str, keys: list[str]
) -> None:
    """Only one header with the very key opens the door; the answer is the same for all others."""
    headers = [("X-Service-ID", "result_service"), *(("X-Internal-API-Key", key) for key in keys)]
    async with httpx.AsyncClient(trust_env=False) as caller:
        url = f"http://127.0.0.1:{service.port}/internal/v1{path}"
        error = error_of(await caller.request(method, url, headers=headers), 401, "INVALID_API_KEY")
    assert error["message"] == "Invalid or missing API key"
    assert error["details"] == {}


async def test_the_key_is_checked_before_the_body_comes(service: ServiceProcess) -> None:
    """Who has no key is answered without anybody waiting for what else it sends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        b"POST /internal/v1/notifications HTTP/1.1\r\nHost: x\r\nX-Service-ID: a\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
    )
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_callers_name_themselves(service: ServiceProcess, method: str, path: str) -> None:
    """A caller without X-Service-ID, or with one that is none, is told so."""
    async with api(service, **{"X-Internal-API-Key": KEY}) as caller:
        error = error_of(await caller.request(method, path), 400, "MISSING_REQUIRED_FIELD")
        assert error["details"]["field_name"] == "X-Service-ID"
        for wrong in (b"a" * 65, "é".encode(), b"a\tb"):
            response = await caller.request(method, path, headers={b"X-Service-ID": wrong})
            error = error_of(response, 400, "VALIDATION_ERROR")
            assert error["details"]["field"] == "X-Service-ID"
        for secret in (KEY, token(), f"by {token()}"[:64]):
            response = await caller.request(method, path, headers={"X-Service-ID": secret})
            error = error_of(response, 400, "VALIDATION_ERROR")
            assert error["details"]["field"] == "X-Service-ID"
            assert secret not in response.text
            assert secret not in service.output()
        twice = [("X-Service-ID", "a"), ("X-Service-ID", "b")]
        error_of(await caller.request(method, path, headers=twice), 400, "VALIDATION_ERROR")


async def test_the_key_is_nowhere_to_be_seen(
    service: ServiceProcess, client: httpx.AsyncClient
) -> None:
    """No log line, metric or answer has the key or one that was refused; they name the caller."""
    wrong = f"wrong-{uuid4()}"
    published = await client.post("/notifications", json={"notifications": [notification()]})
    refused = await client.get("/presence", headers={"X-Internal-API-Key": wrong})
    _, _, metrics = await service.http("/metrics")
    written = f"{service.output()}\n{metrics.decode()}\n{published.text}\n{refused.text}"
    assert "access: " in written
    assert "result_service" in service.output()
    assert KEY not in written
    assert wrong not in written


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/notifications"), ("GET", "/revocations"), ("OPTIONS", "/presence")],
)
async def test_other_methods_are_refused(client: httpx.AsyncClient, method: str, path: str) -> None:
    """A method that a route has not got is a 405 that names those it has."""
    response = await client.request(method, path)
    error_of(response, 405, "INVALID_REQUEST")
    assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/nothing", "//v1/presence", "/internal//v1/presence"])
async def test_an_unknown_path_is_an_unknown_path(service: ServiceProcess, path: str) -> None:
    """What is not there is a 404, whatever Host is asked for, and never a redirect to it."""
    prefix = "" if path.startswith("/internal") else "/internal"
    headers = {**HEADERS, "Host": "evil.example.org"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as caller:
        response = await caller.get(f"http://127.0.0.1:{service.port}{prefix}{path}")
    error_of(response, 404, "RESOURCE_NOT_FOUND")
    assert "evil" not in f"{response.headers}{response.text}"


# Publishing


async def test_a_published_notification_reaches_the_user(
    service: ServiceProcess, client: httpx.AsyncClient
) -> None:
    """A tab gets what a service has published over HTTP, with that service's name and id."""
    user, correlation_id = new_user(), str(uuid4())
    async with v1_tab(service, user) as tab:
        response = await client.post(
            "/notifications",
            json={"notifications": [notification(1, user), notification(2, user, durable=False)]},
            headers={
                "X-Correlation-ID": correlation_id,
                "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01",
            },
        )
        received = await tab.notifications(2)
    assert response.status_code == 200
    assert response.headers["x-correlation-id"] == correlation_id
    durable, transient = response.json()["results"]
    assert durable == {
        "status": "published",
        "id": received[0]["id"],
        "receivers": 1,
        "duplicate": False,
    }
    assert transient == {"status": "published", "id": None, "receivers": 1, "duplicate": False}
    assert [frame["data"] for frame in received] == [{"n": 1}, {"n": 2}]
    assert {frame["source_service"] for frame in received} == {"result_service"}
    assert {frame["correlation_id"] for frame in received} == {correlation_id}
    assert TRACE_ID in received[0]["metadata"]["traceparent"]


async def test_a_notification_says_itself_whom_it_comes_from(client: httpx.AsyncClient) -> None:
    """Its own source and correlation id stand before those of the request."""
    user = new_user()
    own = notification(0, user, source_service="class_service", correlation_id="c-1")
    await client.post("/notifications", json={"notifications": [own]})
    answer = (await client.get("/history", params={"user_id": user})).json()
    published = answer["notifications"][0]["notification"]
    assert published["source_service"] == "class_service"
    assert published["correlation_id"] == "c-1"


BAD_ITEMS: list[tuple[Any, str]] = [
    (7, "VALIDATION_ERROR"),
    (None, "VALIDATION_ERROR"),
    ({}, "VALIDATION_ERROR"),
    (notification(user=""), "VALIDATION_ERROR"),
    (notification(data=[]), "VALIDATION_ERROR"),
    (notification(data={"text": "x" * 70_000}), "VALIDATION_ERROR"),
    (notification(data={"half": "\ud800"}), "VALIDATION_ERROR"),
    (notification(user="\ud800"), "VALIDATION_ERROR"),
    (notification(data={"huge": 1e308 * 10}), "VALIDATION_ERROR"),
    (notification(durable="yes"), "VALIDATION_ERROR"),
    (notification(durable=False, idempotency_key="k"), "VALIDATION_ERROR"),
    (notification(idempotency_key="k" * 257), "VALIDATION_ERROR"),
    (notification(expires_in_s=0), "VALIDATION_ERROR"),
    (notification(expires_in_s=10**400), "VALIDATION_ERROR"),
    (notification(unknown=1), "VALIDATION_ERROR"),
]


async def test_a_bad_notification_refuses_itself_alone(client: httpx.AsyncClient) -> None:
    """Between good ones each bad one gets an error of its own, and the good ones are published."""
    user = new_user()
    items = [item for bad, _ in BAD_ITEMS for item in (notification(1, user), bad)]
    # Python's own infinity is no JSON; 1e999 is, and overflows.
    body = json.dumps({"notifications": items}).replace("Infinity", "1e999")
    response = await client.post(
        "/notifications", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [result["status"] for result in results] == ["published", "refused"] * len(BAD_ITEMS)
    for result, (_, code) in zip(results[1::2], BAD_ITEMS, strict=True):
        assert result["error"]["code"] == code
        assert result["error"]["message"]
        assert result["error"]["details"]
    answer = (await client.get("/history", params={"user_id": user})).json()
    assert [kept["id"] for kept in answer["notifications"]] == [r["id"] for r in results[::2]]


async def test_a_repeated_notification_is_published_once(client: httpx.AsyncClient) -> None:
    """With an idempotency key a call can be repeated: the second time nothing happens."""
    user = new_user()
    body = {"notifications": [notification(1, user, idempotency_key="job-1")]}
    first, second = [
        (await client.post("/notifications", json=body)).json()["results"][0] for _ in range(2)
    ]
    assert not first["duplicate"]
    assert second == {"status": "published", "id": first["id"], "receivers": 0, "duplicate": True}


async def test_a_thousand_at_once(client: httpx.AsyncClient) -> None:
    """A thousand notifications for many users go in one call, and each gets its place."""
    users = [new_user() for _ in range(10)]
    items = [notification(n, users[n % 10]) for n in range(1000)]
    response = await client.post("/notifications", json={"notifications": items})
    results = response.json()["results"]
    assert len(results) == 1000
    assert {result["status"] for result in results} == {"published"}
    for index, user in enumerate(users):
        answer = (await client.get("/history", params={"user_id": user, "limit": 1000})).json()
        assert [kept["id"] for kept in answer["notifications"]] == [
            result["id"] for result in results[index::10]
        ]
        assert [kept["notification"]["data"]["n"] for kept in answer["notifications"]] == [
            *range(index, 1000, 10)
        ]


@pytest.mark.parametrize("count", [0, 1001])
async def test_too_many_or_none_at_all(client: httpx.AsyncClient, count: int) -> None:
    """A call has one to a thousand notifications; else nothing of it is published."""
    user = new_user()
    response = await client.post(
        "/notifications", json={"notifications": [notification(0, user)] * count}
    )
    error = error_of(response, 400, "VALIDATION_ERROR")
    assert error["details"]["validation_errors"][0]["location"] == ["notifications"]
    answer = (await client.get("/history", params={"user_id": user})).json()
    assert answer == {"user_id": user, "notifications": [], "newest": None}


# Bodies and queries

SECRET_INPUT = "a-secret-that-was-sent"


@pytest.mark.parametrize("path", ["/notifications", "/disconnections", "/revocations"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"notifications"',
        b"{} {}",
        b'{"user_id": NaN}',
        b'{"user_id": "%s", "user_id": "b"}' % SECRET_INPUT.encode(),
        b'{"unknown": "%s"}' % SECRET_INPUT.encode(),
        b'{"user_id": ["%s"]}' % SECRET_INPUT.encode(),
        b'{"user_id": "\xff"}',
        b'\xef\xbb\xbf{"user_id": "a"}',
        '{"user_id": "a"}'.encode("utf-16"),
        b'{"user_id": ' + b"[" * 100_000 + b"}",
        b'{"user_id": ' + b"9" * 5000 + b"}",
    ],
    ids=range(15),
)
async def test_a_bad_body_is_refused(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    """What is no JSON object of the right form is refused, and nothing of it is sent back."""
    response = await client.post(
        path, content=body, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    error = error_of(response, 400, "VALIDATION_ERROR")
    assert error["details"]["validation_errors"]
    assert SECRET_INPUT not in response.text


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"]
)
async def test_other_types_than_json(client: httpx.AsyncClient, content_type: str | None) -> None:
    """A body that does not say that it is JSON is not looked at."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await client.post("/disconnections", content=b'{"user_id": "a"}', headers=headers)
    error_of(response, 415, "INVALID_REQUEST")


async def test_a_body_that_does_not_come(service: ServiceProcess) -> None:
    """Who announces a body and sends half of it is told so, and the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        b"POST /internal/v1/notifications HTTP/1.1\r\nHost: x\r\nX-Service-ID: a\r\n"
        b"X-Internal-API-Key: %b\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{" % KEY.encode()
    )
    async with asyncio.timeout(2 * GIVE_UP_AFTER_S):
        head = await reader.readuntil(b"\r\n\r\n")
        body = json.loads(await reader.read())
    assert head.startswith(b"HTTP/1.1 408 ")
    assert_public_error(body["error"], "TIMEOUT")
    writer.close()
    await writer.wait_closed()


async def test_a_body_over_the_limit(service: ServiceProcess) -> None:
    """A body over 16 MiB is refused by its announcement; one of just that size is read."""
    async with api(service) as caller:
        most = json.dumps({"notifications": [notification(data={"x": ""})]})
        most = most.replace('"x": ""', '"x": "%s"' % ("x" * (MAX_BODY_BYTES - len(most))))
        response = await caller.post(
            "/notifications", content=most, headers={"Content-Type": "application/json"}
        )
        assert len(most) == MAX_BODY_BYTES
        assert response.json()["results"][0]["status"] == "refused"
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        b"POST /internal/v1/notifications HTTP/1.1\r\nHost: x\r\nX-Service-ID: a\r\n"
        b"X-Internal-API-Key: %b\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n{" % (KEY.encode(), MAX_BODY_BYTES + 1)
    )
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = json.loads(await reader.readexactly(length))
    assert head.startswith(b"HTTP/1.1 413 ")
    assert_public_error(body["error"], "INVALID_REQUEST")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/history", ["user_id"]),
        ("/history?user_id=", ["user_id"]),
        ("/history?user_id=a&user_id=b", ["user_id"]),
        ("/history?user_id=" + "a" * 4097, ["user_id"]),
        ("/presence?user_id=" + "%c3%a9" * 2049, ["user_id"]),
        ("/history?user_id=a&limit=0", ["limit"]),
        ("/history?user_id=a&limit=1001", ["limit"]),
        ("/history?user_id=a&limit=x", ["limit"]),
        ("/history?user_id=a&limit=1_0", ["limit"]),
        ("/history?user_id=a&limit=" + "9" * 5000, ["limit"]),
        ("/history?user_id=a&unknown=1", ["unknown"]),
        ("/presence?user_id=", ["user_id"]),
        ("/presence?limit=-1", ["limit"]),
        ("/presence?after=", ["after"]),
        ("/presence?unknown=1", ["unknown"]),
    ],
)
async def test_a_bad_query_is_refused(
    client: httpx.AsyncClient, path: str, location: list[str]
) -> None:
    """A query says exactly what is described, and the answer which parameter is wrong."""
    error = error_of(await client.get(path), 400, "VALIDATION_ERROR")
    assert [one["location"] for one in error["details"]["validation_errors"]] == [location]


# History


async def test_history_of_a_user(client: httpx.AsyncClient, publisher: RedisClient) -> None:
    """The kept notifications come oldest first, as they were published, the newest if too many."""
    user = new_user()
    ids = await publish(publisher, user, range(5))
    ids += await publish(publisher, user, [5], expires_in_s=3600)
    answer = (await client.get("/history", params={"user_id": user})).json()
    assert answer["user_id"] == user
    assert answer["newest"] == ids[-1]
    assert [kept["id"] for kept in answer["notifications"]] == ids
    assert [kept["notification"]["data"]["n"] for kept in answer["notifications"]] == [*range(6)]
    assert [kept["notification"]["prev"] for kept in answer["notifications"]] == [None, *ids[:-1]]
    assert [kept["expires_at"] for kept in answer["notifications"][:5]] == [None] * 5
    expires_at = datetime.fromisoformat(answer["notifications"][5]["expires_at"])
    assert timedelta() < expires_at - datetime.now(UTC) < timedelta(seconds=3601)
    newest = (await client.get("/history", params={"user_id": user, "limit": 2})).json()
    assert [kept["id"] for kept in newest["notifications"]] == ids[-2:]


async def test_history_after_an_id(client: httpx.AsyncClient, publisher: RedisClient) -> None:
    """What follows an id comes page by page, without a gap, until nothing follows."""
    user = new_user()
    ids = await publish(publisher, user, range(7))
    seen, after = [], ids[0]
    while after != ids[-1]:
        params: dict[str, str | int] = {"user_id": user, "after": after, "limit": 4}
        answer = (await client.get("/history", params=params)).json()
        assert answer["newest"] == ids[-1]
        seen += [kept["id"] for kept in answer["notifications"]]
        after = seen[-1]
    assert seen == ids[1:]
    last = (await client.get("/history", params={"user_id": user, "after": after})).json()
    assert last == {"user_id": user, "notifications": [], "newest": ids[-1]}


async def test_history_after_an_id_that_proves_nothing(
    client: httpx.AsyncClient, publisher: RedisClient
) -> None:
    """Where nobody can say what followed an id, that is an error with the reason, and no guess."""
    user = new_user()
    ids = await publish(publisher, user, range(300))
    offset = int(ids[-1].partition("-")[0])
    for after, reason in [
        ("nonsense", "cursor_unknown"),
        (f"{offset}-1", "cursor_unknown"),
        (f"{offset + 1000}-1", "history_lost"),
        (ids[0], "history_trimmed"),
    ]:
        response = await client.get("/history", params={"user_id": user, "after": after})
        error = error_of(response, 404, "RESOURCE_NOT_FOUND")
        assert error["details"]["reason"] == reason
    response = await client.get("/history", params={"user_id": new_user(), "after": ids[0]})
    assert error_of(response, 404, "RESOURCE_NOT_FOUND")["details"]["reason"] == "history_lost"


async def test_a_notification_with_many_levels(client: httpx.AsyncClient) -> None:
    """What could be published can be read again, however deep it is."""
    user = new_user()
    nested = "[" * 800 + "]" * 800
    body = json.dumps({"notifications": [notification(user=user, data={"a": "nested"})]})
    response = await client.post(
        "/notifications",
        content=body.replace('"nested"', nested),
        headers={"Content-Type": "application/json"},
    )
    assert response.json()["results"][0]["status"] == "published"
    response = await client.get("/history", params={"user_id": user})
    assert response.status_code == 200
    assert nested in response.text


async def test_reading_leaves_no_trace(client: httpx.AsyncClient, publisher: RedisClient) -> None:
    """Asking about users who do not exist makes nothing of them in Redis."""
    user = new_user()
    await client.get("/history", params={"user_id": user})
    await client.get("/history", params={"user_id": user, "after": "1-1"})
    await client.get("/presence", params={"user_id": user})
    await client.post("/disconnections", json={"user_id": user})
    assert [key for key in await publisher.scan_pattern("*") if user in key] == []


# Who is connected, in however many processes


@asynccontextmanager
async def two_services(
    redis_server: RedisServer, **settings: str
) -> AsyncIterator[tuple[ServiceProcess, ServiceProcess]]:
    """Two processes of one service, both with the internal API."""
    both = {"INTERNAL_API_KEY": KEY, **settings}
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(ServiceProcess(redis_server.url, settings=both))
            for _ in range(2)
        ]
        yield first, second


async def test_presence_across_processes(redis_server: RedisServer) -> None:
    """Whichever process is asked, all connections of all processes count, and lapse with theirs."""
    user, other = new_user(), new_user()
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    async with (
        two_services(redis_server, WEBSOCKET_LEASE_DURATION="1") as (first, second),
        api(first) as caller,
        v1_tab(first, user),
        v1_tab(first, other),
    ):
        first_since = (await caller.get("/presence", params={"user_id": user})).json()["since"]
        async with second.connect(user):
            presence = await until(
                lambda answer: answer["connections"] == 2, caller, f"/presence?user_id={user}"
            )
            assert presence == {
                "user_id": user,
                "online": True,
                "connections": 2,
                "since": first_since,
            }
            assert before <= datetime.fromisoformat(first_since) <= datetime.now(UTC)
            second.signal_all(signal.SIGKILL)
            await second.wait()
            presence = await until(
                lambda answer: answer["connections"] == 1, caller, f"/presence?user_id={user}"
            )
            assert presence["since"] == first_since
        page = (await caller.get("/presence")).json()
        assert {user, other} <= {one["user_id"] for one in page["users"]}
        assert "token" not in json.dumps(page)


async def test_presence_of_nobody(client: httpx.AsyncClient) -> None:
    """A user without a connection is not online."""
    user = new_user()
    presence = (await client.get("/presence", params={"user_id": user})).json()
    assert presence == {"user_id": user, "online": False, "connections": 0, "since": None}


async def test_presence_page_by_page(service: ServiceProcess, client: httpx.AsyncClient) -> None:
    """All who are online can be gone through in pages, sorted, each of them once."""
    users = sorted(f"page-{number}-{uuid4()}" for number in range(5))
    async with AsyncExitStack() as tabs:
        for user in users:
            await tabs.enter_async_context(v1_tab(service, user))
        seen, after = [], "page-"
        while True:
            params: dict[str, str | int] = {"limit": 2, "after": after}
            page = (await client.get("/presence", params=params)).json()
            assert len(page["users"]) <= 2
            seen += [one["user_id"] for one in page["users"] if one["user_id"].startswith("page-")]
            if page["next"] is None:
                break
            after = page["next"]
    assert seen == users


async def test_a_user_is_disconnected_in_every_process(redis_server: RedisServer) -> None:
    """All of a user's connections end, wherever they are, and nobody else's."""
    user, other = new_user(), new_user()
    async with (
        two_services(redis_server) as (first, second),
        api(first) as caller,
        v1_tab(first, user) as one,
        v1_tab(second, user) as two,
        v1_tab(second, other) as neighbour,
    ):
        response = await caller.post("/disconnections", json={"user_id": user})
        assert response.status_code == 202
        assert response.json() == {"connections": 2}
        assert [await close_code(tab) for tab in (one, two)] == [1008, 1008]
        published = {"notifications": [notification(1, other)]}
        await caller.post("/notifications", json=published)
        assert await neighbour.numbers(1) == [1]


async def test_a_connection_is_disconnected_in_another_process(redis_server: RedisServer) -> None:
    """One connection ends by its id, and the user's others stay."""
    user = new_user()
    async with (
        two_services(redis_server) as (first, second),
        api(first) as caller,
        v1_tab(second, user) as leaver,
        v1_tab(second, user) as stayer,
    ):
        connection_id = leaver.welcome["connection_id"]
        response = await caller.post(
            "/disconnections", json={"connection_id": connection_id, "reconnect": True}
        )
        assert response.status_code == 202
        assert response.json() == {"connections": None}
        assert await close_code(leaver) == 1012
        await caller.post("/notifications", json={"notifications": [notification(1, user)]})
        assert await stayer.numbers(1) == [1]


@pytest.mark.parametrize("wrong", ["", "a", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n", token()])
async def test_what_is_no_id_of_a_connection(
    service: ServiceProcess, client: httpx.AsyncClient, wrong: str
) -> None:
    """Only an id as connections have it is taken: a token that is pasted there is not logged."""
    response = await client.post("/disconnections", json={"connection_id": wrong})
    error = error_of(response, 400, "VALIDATION_ERROR")
    assert error["details"]["validation_errors"][0]["location"] == ["connection_id"]
    if len(wrong) > 33:
        assert wrong not in service.output() + response.text


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/revocations", "token_id"),
        ("/revocations", "jti"),
        ("/revocations", "user_id"),
        ("/disconnections", "user_id"),
    ],
)
async def test_a_token_is_no_id(
    service: ServiceProcess, client: httpx.AsyncClient, path: str, field: str
) -> None:
    """Who pastes a token where an id belongs is told so, and it is not logged."""
    whole = token()
    for wrong in (whole, f"Bearer {whole}"):
        response = await client.post(path, json={field: wrong})
        error = error_of(response, 400, "VALIDATION_ERROR")
        assert error["details"]["validation_errors"][0]["location"] == [field]
        assert whole not in service.output() + response.text


@pytest.mark.parametrize("field", ["token_id", "jti", "user_id"])
async def test_revocation_reaches_every_process(redis_server: RedisServer, field: str) -> None:
    """A revoked token's connections end in every process, and it opens none in any."""
    user, jti = new_user(), str(uuid4())
    bearer = token(user, jti=jti, iat=int(datetime.now(UTC).timestamp()) - 5)
    async with (
        two_services(redis_server) as (first, second),
        api(first) as caller,
        second.connect(bearer=bearer, subprotocols=[V1]) as live,
    ):
        await live.recv()
        response = await caller.post(
            "/revocations", json={field: user if field == "user_id" else jti}
        )
        assert response.status_code == 201, response.text
        made = response.json()
        assert made["user_id" if field == "user_id" else "token_id"] in {user, jti}
        assert datetime.fromisoformat(made["expires_at"]) > datetime.now(UTC)
        assert (await closed(live)).code == 1008
        for process in (first, second):
            async with process.connect(bearer=bearer) as again:
                close = await closed(again)
            assert (close.code, close.reason["error_code"]) == (1008, "AUTHENTICATION_ERROR")


async def test_revocation_as_it_is_kept(client: httpx.AsyncClient) -> None:
    """The answer says what is revoked and until when that is remembered."""
    user, now = new_user(), datetime.now(UTC).replace(microsecond=0)
    body = {"user_id": user, "issued_before": now.isoformat()}
    made = (await client.post("/revocations", json=body)).json()
    assert made["user_id"] == user
    assert made["token_id"] is None
    assert datetime.fromisoformat(made["issued_before"]) == now
    expires_at = now + timedelta(hours=1)
    body = {"token_id": "t-1", "expires_at": expires_at.isoformat()}
    made = (await client.post("/revocations", json=body)).json()
    assert made["token_id"] == "t-1"
    assert made["user_id"] is None
    assert made["issued_before"] is None
    assert datetime.fromisoformat(made["expires_at"]) == expires_at


async def test_revocation_of_what_has_expired(client: httpx.AsyncClient) -> None:
    """An expiry that has passed counts as unknown: a wrong clock lifts no revocation."""
    now = datetime.now(UTC)
    body = {"token_id": "t-2", "expires_at": (now - timedelta(hours=1)).isoformat()}
    made = (await client.post("/revocations", json=body)).json()
    assert datetime.fromisoformat(made["expires_at"]) > now + timedelta(days=1)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"user_id": "a", "issued_before": "2100-01-01T00:00:00Z"}, 409),
        ({"user_id": "a", "issued_before": "1900-01-01T00:00:00Z"}, 409),
        ({"token_id": "a", "expires_at": "9999-01-01T00:00:00Z"}, 409),
        ({"user_id": "a", "issued_before": "2026-01-01"}, 400),
        ({"user_id": "a", "issued_before": "2026-01-01T00:00:00"}, 400),
        ({"user_id": "a", "issued_before": 1700000000}, 400),
        ({"user_id": "a", "issued_before": "1700000000"}, 400),
        ({"user_id": "a", "expires_at": "2026-01-01T00:00:00Z"}, 400),
        ({"token_id": "a", "jti": "a"}, 400),
        ({"token_id": "a", "user_id": "a"}, 400),
        ({"token_id": "é" * MAX_ID_BYTES}, 400),
        ({"token_id": ""}, 400),
    ],
)
async def test_a_revocation_that_makes_no_sense(
    client: httpx.AsyncClient, body: dict[str, Any], status: int
) -> None:
    """A moment that can't be meant, or an id that is none, revokes nothing."""
    sent = str(uuid4())
    response = await client.post("/revocations", json=body, headers={"X-Correlation-ID": sent})
    assert error_of(response, status, "VALIDATION_ERROR")["correlation_id"] == sent


# Redis away


@pytest.mark.parametrize("failure", [signal.SIGKILL, signal.SIGSTOP])
async def test_redis_away(failure: signal.Signals) -> None:
    """Without Redis every route says so, and publishing says it of each notification."""
    settings = {"INTERNAL_API_KEY": KEY, "REDIS_TIMEOUT": "0.5"}
    async with (
        RedisServer() as redis_server,
        ServiceProcess(redis_server.url, settings=settings) as service,
        api(service) as caller,
    ):
        redis_server.signal(failure)
        try:
            items = [notification(1), {}, notification(2)]
            response = await caller.post("/notifications", json={"notifications": items})
            assert response.status_code == 200
            failed, refused, again = response.json()["results"]
            assert failed == again
            assert failed["status"] == "failed"
            assert failed["error"]["code"] == "CONNECTION_ERROR"
            assert "may have been published" in failed["error"]["message"]
            assert refused["status"] == "refused"
            for response in [
                await caller.get("/history", params={"user_id": "a"}),
                await caller.get("/history", params={"user_id": "a", "after": "1-1"}),
                await caller.get("/presence", params={"user_id": "a"}),
                await caller.get("/presence"),
                await caller.post("/disconnections", json={"user_id": "a"}),
                await caller.post("/disconnections", json={"connection_id": "a" * 32}),
                await caller.post("/revocations", json={"user_id": "a"}),
                await caller.post("/revocations", json={"token_id": "a"}),
            ]:
                error = error_of(response, 503, "CONNECTION_ERROR")
                assert "127.0.0.1" not in response.text
                assert error["details"] == {"target": "redis"}
        finally:
            if failure is signal.SIGSTOP:
                redis_server.signal(signal.SIGCONT)
