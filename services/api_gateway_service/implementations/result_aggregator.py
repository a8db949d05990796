"""How far batches are, as the result aggregator knows it.

Whatever it answers but the expected is its failure and not the client's, and nothing of such an
answer, nor where it comes from, is in the error that the client gets. The breaker only asks whether
it answers at all: one batch that it can't describe must not hide all others from their owners.
"""

import asyncio
import math
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NoReturn
from urllib.parse import quote
from uuid import UUID

import httpx
from opentelemetry.trace import Span, SpanKind, Tracer

from huleedu_service_libs.error_handling import (
    CORRELATION_ID_HEADER,
    raise_authorization_error,
    raise_circuit_breaker_open,
    raise_external_service_error,
    raise_resource_not_found,
    raise_timeout_error,
)
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.observability import inject_trace_context
from services.api_gateway_service.aggregator_answer import AggregatorAnswer
from services.api_gateway_service.circuit_breaker import (
    CircuitBreaker,
    CircuitOpenError,
    CircuitState,
)
from services.api_gateway_service.config import SERVICE_NAME
from services.api_gateway_service.metrics import GatewayMetrics
from services.api_gateway_service.protocols import BatchStatus

logger = create_service_logger(__name__)

RESULT_AGGREGATOR: Final = "result_aggregator_service"
MAX_ANSWER_BYTES: Final = 4_194_304

_OPERATION: Final = "get_batch_status"
_METHOD: Final = "GET"
_ENDPOINT: Final = "/internal/v1/batches/{batch_id}/status"
# Servers close idle connections after 5 s at the earliest. One that is closed while a request is on
# its way to it is a failure for nothing.
_KEEPALIVE_S: Final = 2
_STATE_VALUES: Final = {
    CircuitState.CLOSED: 0,
    CircuitState.HALF_OPEN: 1,
    CircuitState.OPEN: 2,
}


def result_aggregator_client(*, timeout_s: float, connect_timeout_s: float) -> httpx.AsyncClient:
    """What `ResultAggregator` asks with; an async context manager.

    The environment's proxies are not for what services say to each other.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
        limits=httpx.Limits(keepalive_expiry=_KEEPALIVE_S),
        follow_redirects=False,
        trust_env=False,
        # One jar for all users would carry one's cookies to another's requests.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


@dataclass(frozen=True, slots=True)
class _Reply:
    status_code: int
    body: bytes | None
    """None where there is too much of it."""


class ResultAggregator:
    """A `BatchStatusProtocol`; a call ends within `timeout_s`, however slowly bytes arrive."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        breaker: CircuitBreaker,
        metrics: GatewayMetrics,
        tracer: Tracer,
        *,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
    ) -> None:
        self._client = client
        self._breaker = breaker
        self._metrics = metrics
        self._tracer = tracer
        self._base_url = base_url
        # A small compressed answer can become a large one.
        self._headers = {"Accept-Encoding": "identity", "X-Service-ID": SERVICE_NAME}
        if api_key is not None:
            self._headers["X-Internal-API-Key"] = api_key
        self._timeout_s = timeout_s
        metrics.circuit_state.labels(RESULT_AGGREGATOR).set_function(
            lambda: _STATE_VALUES[breaker.state]
        )

    async def status(self, batch_id: str, *, user_id: str, correlation_id: UUID) -> BatchStatus:
        # Errors that are made within a span mark it by themselves.
        with self._tracer.start_as_current_span(
            "gateway.proxy_request",
            kind=SpanKind.CLIENT,
            attributes={
                "peer.service": RESULT_AGGREGATOR,
                "http.request.method": _METHOD,
                "url.template": _ENDPOINT,
                "correlation_id": str(correlation_id),
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            reply = await self._ask(batch_id, correlation_id, span)
            answer = self._understood(reply, batch_id, correlation_id)
        if answer.user_id != user_id:
            raise_authorization_error(
                SERVICE_NAME, _OPERATION, "This batch belongs to someone else", correlation_id
            )
        return answer.status

    async def _ask(self, batch_id: str, correlation_id: UUID, span: Span) -> _Reply:
        try:
            reply = await self._attempt(batch_id, correlation_id)
        except CircuitOpenError as error:
            self._count("circuit_open")
            raise_circuit_breaker_open(
                SERVICE_NAME,
                _OPERATION,
                RESULT_AGGREGATOR,
                "The status of batches is not available at present",
                correlation_id,
                retry_after_seconds=max(1, math.ceil(error.retry_after_s)),
            )
        except (TimeoutError, httpx.TimeoutException) as error:
            self._count("timeout")
            logger.warning("the result aggregator did not answer in time", reason=repr(error))
            raise_timeout_error(
                SERVICE_NAME,
                _OPERATION,
                self._timeout_s,
                "The result aggregator did not answer in time",
                correlation_id,
            )
        except httpx.HTTPError as error:
            self._count("connection_error")
            self._fail("The result aggregator can't be reached", repr(error), correlation_id)
        span.set_attribute("http.response.status_code", reply.status_code)
        return reply

    async def _attempt(self, batch_id: str, correlation_id: UUID) -> _Reply:
        with self._breaker.attempt() as attempt:
            started_at = time.perf_counter()
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = await self._exchange(batch_id, correlation_id)
            except (TimeoutError, httpx.HTTPError):
                attempt.succeeded = False
                raise
            finally:
                self._metrics.downstream_call_duration.labels(
                    RESULT_AGGREGATOR, _METHOD, _ENDPOINT
                ).observe(time.perf_counter() - started_at)
            attempt.succeeded = reply.status_code < HTTPStatus.INTERNAL_SERVER_ERROR
            return reply

    async def _exchange(self, batch_id: str, correlation_id: UUID) -> _Reply:
        url = self._base_url + _ENDPOINT.format(batch_id=quote(batch_id, safe=""))
        headers = {**self._headers, CORRELATION_ID_HEADER: str(correlation_id)}
        inject_trace_context(headers)
        async with self._client.stream(_METHOD, url, headers=headers) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    return _Reply(response.status_code, None)
        return _Reply(response.status_code, bytes(body))

    def _understood(self, reply: _Reply, batch_id: str, correlation_id: UUID) -> AggregatorAnswer:
        if reply.status_code != HTTPStatus.OK:
            self._count(str(reply.status_code))
            if reply.status_code == HTTPStatus.NOT_FOUND:
                raise_resource_not_found(
                    SERVICE_NAME, _OPERATION, "Batch", batch_id, correlation_id
                )
            self._fail(
                "The result aggregator failed", f"status {reply.status_code}", correlation_id
            )
        try:
            if reply.body is None:
                raise ValueError(f"it has more than {MAX_ANSWER_BYTES} bytes")  # noqa: TRY301 - as bad as any other
            answer = AggregatorAnswer.parse(reply.body)
        except ValueError as error:
            self._count("invalid_response")
            self._fail("The result aggregator's answer makes no sense", str(error), correlation_id)
        self._count(str(reply.status_code))
        return answer

    def _fail(self, message: str, reason: str, correlation_id: UUID) -> NoReturn:
        logger.warning(message, reason=reason)
        raise_external_service_error(
            SERVICE_NAME, _OPERATION, RESULT_AGGREGATOR, message, correlation_id
        )

    def _count(self, status_code: str) -> None:
        self._metrics.downstream_calls.labels(
            RESULT_AGGREGATOR, _METHOD, _ENDPOINT, status_code
        ).inc()
