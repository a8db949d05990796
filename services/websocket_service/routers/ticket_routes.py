"""`POST /v1/tickets`: a stand-in for a token, for clients that can only give a URL.

Pages of other origins may call it (WHATWG Fetch, "CORS protocol"). The token is in a header that no
page can send by accident, so no cookie is asked for and `Access-Control-Allow-Credentials` is never
sent.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn
from uuid import UUID

from dishka import FromDishka
from quart import Blueprint, Response, g, request
from quart_dishka import inject

from common_core.error_enums import ErrorCode
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.error_handling import (
    HuleEduError,
    raise_authentication_error,
    raise_authorization_error,
    raise_rate_limit_error,
    raise_service_unavailable,
)
from huleedu_service_libs.error_handling.correlation import CORRELATION_ID_HEADER
from huleedu_service_libs.error_handling.quart import extract_correlation_id
from services.websocket_service.address_limits import AddressLimits
from services.websocket_service.client_address import TrustedProxies
from services.websocket_service.close_reasons import TOKEN_REVOKED
from services.websocket_service.config import Settings
from services.websocket_service.credentials import SCOPE_KEY, Credentials
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.protocols import (
    BackplaneUnavailableError,
    JWTValidatorProtocol,
    RevocationsProtocol,
    TicketsProtocol,
)
from services.websocket_service.routers.address_account import address_account

ticket_blueprint = Blueprint("tickets", __name__)

_PATH: Final = "/v1/tickets"
_OPERATION: Final = "issue_ticket"
_PREFLIGHT_MAX_AGE_S: Final = 600
# Each address gets at least one a second.
_RETRY_AFTER_S: Final = 1


@ticket_blueprint.post(_PATH, provide_automatic_options=False)
@inject
async def issue_ticket(
    settings: FromDishka[Settings],
    origins: FromDishka[AllowedOrigins],
    proxies: FromDishka[TrustedProxies],
    addresses: FromDishka[AddressLimits],
    validator: FromDishka[JWTValidatorProtocol],
    revocations: FromDishka[RevocationsProtocol],
    tickets: FromDishka[TicketsProtocol],
) -> tuple[dict[str, str | int], int]:
    """201 with the ticket; 401, 403, 429 or 503 with the error body."""
    service, correlation_id = settings.SERVICE_NAME, extract_correlation_id(request)
    # First, so that a page can read the answers that follow.
    _check_origin(origins, service, correlation_id)
    _check_address(request.scope, settings, proxies, addresses, correlation_id)
    try:
        claims = await _verified(request.scope, validator, service, correlation_id)
        if await revocations.is_revoked(claims):
            _reject(TOKEN_REVOKED.message, TOKEN_REVOKED.why, service, correlation_id)
        issued = await tickets.issue(claims)
    except BackplaneUnavailableError:
        raise_service_unavailable(
            service, _OPERATION, "redis", "Tickets are unavailable", correlation_id
        )
    return {"ticket": issued.ticket, "expires_in_ms": issued.expires_in_ms}, HTTPStatus.CREATED


@ticket_blueprint.route(_PATH, methods=["OPTIONS"])
@inject
async def preflight(
    settings: FromDishka[Settings], origins: FromDishka[AllowedOrigins]
) -> tuple[str, int, dict[str, str]]:
    """204 with what a page may send; 403 where its origin is not allowed."""
    _check_origin(origins, settings.SERVICE_NAME, extract_correlation_id(request))
    return (
        "",
        HTTPStatus.NO_CONTENT,
        {
            "Allow": "OPTIONS, POST",
            "Access-Control-Allow-Methods": "POST",
            "Access-Control-Allow-Headers": (
                f"Authorization, Content-Type, {CORRELATION_ID_HEADER}, traceparent, tracestate"
            ),
            "Access-Control-Max-Age": str(_PREFLIGHT_MAX_AGE_S),
        },
    )


@ticket_blueprint.after_request
async def _add_headers(response: Response) -> Response:
    """Those that go with every answer, errors included."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["Vary"] = "Origin"
    allowed_origin = g.get("allowed_origin")
    if allowed_origin is not None:
        response.headers["Access-Control-Allow-Origin"] = allowed_origin
        response.headers["Access-Control-Expose-Headers"] = f"Retry-After, {CORRELATION_ID_HEADER}"
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return response


def _check_origin(origins: AllowedOrigins, service: str, correlation_id: UUID) -> None:
    # Several are no origin that could be listed.
    origin = ", ".join(request.headers.getlist("Origin")) if "Origin" in request.headers else None
    if not origins.allow(origin):
        raise_authorization_error(
            service,
            _OPERATION,
            "Origin not allowed",
            correlation_id,
            reason="origin_not_allowed",
        )
    g.allowed_origin = origin


def _check_address(
    scope: Mapping[str, Any],
    settings: Settings,
    proxies: TrustedProxies,
    addresses: AddressLimits,
    correlation_id: UUID,
) -> None:
    account = address_account(scope, settings, proxies)
    if account is not None and not addresses.take(account):
        raise_rate_limit_error(
            settings.SERVICE_NAME,
            _OPERATION,
            settings.WEBSOCKET_ADDRESS_HANDSHAKES_PER_SECOND,
            1,
            "Too many requests from this address",
            correlation_id,
            reason="address_rate",
        )


async def _verified(
    scope: Mapping[str, Any], validator: JWTValidatorProtocol, service: str, correlation_id: UUID
) -> JWTClaims:
    credentials: Credentials = scope[SCOPE_KEY]
    if credentials.in_url:
        _reject(
            "The token belongs into the Authorization header, not into the URL",
            "credential_in_url",
            service,
            correlation_id,
        )
    if credentials.conflicting:
        _reject("Two different credentials", "conflicting_credentials", service, correlation_id)
    if not credentials.tokens:
        _reject("Missing token", "missing_token", service, correlation_id)
    try:
        return await validator.validate(credentials.tokens[0], correlation_id)
    except HuleEduError as error:
        if error.error_detail.error_code is ErrorCode.AUTHENTICATION_ERROR:
            raise
        # Which key is missing, or which server does not answer, is the operator's to know.
        raise_service_unavailable(
            service, _OPERATION, "token_key", "Tokens can't be verified", correlation_id
        )


def _reject(message: str, reason: str | None, service: str, correlation_id: UUID) -> NoReturn:
    raise_authentication_error(service, _OPERATION, message, correlation_id, reason=reason)
