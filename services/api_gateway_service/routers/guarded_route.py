"""Routes for callers who have said who they are."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from dishka import AsyncContainer
from dishka.integrations.fastapi import DishkaRoute
from fastapi import HTTPException, Request, Response
from fastapi.security import HTTPBearer

from huleedu_service_libs.error_handling import raise_rate_limit_error
from huleedu_service_libs.error_handling.fastapi import extract_correlation_id
from huleedu_service_libs.middleware.request_spans import name_span_after
from services.api_gateway_service.authentication import Caller
from services.api_gateway_service.config import SERVICE_NAME, Settings
from services.api_gateway_service.protocols import RateLimitsProtocol
from services.api_gateway_service.response_headers import add_response_headers

BODY_TIMEOUT_S: Final = 10
"""For a whole body; whoever is slower is answered 408."""

bearer_scheme = HTTPBearer(
    bearerFormat="JWT",
    description="A token of the identity service",
    # `GuardedRoute` has refused by then: this is here for the OpenAPI document.
    auto_error=False,
)


class GuardedRoute(DishkaRoute):
    """Asks who is there, and how often, before anything of the request's body is read.

    FastAPI reads and validates the body before it resolves dependencies: with the guard among
    those, a stranger would be told what a good request looks like, and be given memory.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            name_span_after(request.method, self.path_format)
            container: AsyncContainer = request.state.dishka_container
            # What is answered here is one person's.
            add_response_headers(request.scope, {"Cache-Control": "no-store"})
            caller = await container.get(Caller)
            await _count(request, caller, container)
            await _read_body(request)
            return await handle(request)

        return guarded


async def _count(request: Request, caller: Caller, container: AsyncContainer) -> None:
    limits = await container.get(RateLimitsProtocol)
    decision = await limits.check(caller.user_id)
    reset_after_s = math.ceil(decision.reset_after_s)
    add_response_headers(
        request.scope,
        {
            "X-RateLimit-Limit": str(decision.limit),
            "X-RateLimit-Remaining": str(decision.remaining),
            "X-RateLimit-Reset": str(reset_after_s),
        },
    )
    if decision.allowed:
        return
    add_response_headers(request.scope, {"Retry-After": str(max(1, reset_after_s))})
    settings = await container.get(Settings)
    raise_rate_limit_error(
        SERVICE_NAME,
        "count_request",
        decision.limit,
        settings.RATE_LIMIT_WINDOW,
        f"More than {decision.limit} requests in {settings.RATE_LIMIT_WINDOW} s",
        extract_correlation_id(request),
    )


async def _read_body(request: Request) -> None:
    """Keep it with the request, where FastAPI finds it."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            await request.body()
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT, f"The body did not come within {BODY_TIMEOUT_S} s"
        ) from None
