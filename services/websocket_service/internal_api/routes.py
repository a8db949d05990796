"""`/internal/v1`: how other services publish, and see and decide who is connected."""

import json
from http import HTTPStatus
from typing import Final

from dishka import FromDishka
from pydantic import BaseModel
from quart import Blueprint, Quart, Response, current_app, request
from quart_dishka import inject
from quart_schema import document_querystring, document_request, document_response
from structlog.contextvars import bind_contextvars

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import (
    HuleEduError,
    create_error_detail_with_context,
    raise_invalid_api_key,
    raise_missing_required_field,
    raise_resource_not_found,
    raise_validation_error,
)
from huleedu_service_libs.error_handling.correlation import CORRELATION_ID_HEADER
from huleedu_service_libs.error_handling.quart import create_error_response, extract_correlation_id
from huleedu_service_libs.logging_utils import create_service_logger
from services.websocket_service.config import Settings
from services.websocket_service.credentials import INTERNAL_API_KEY_SCOPE_KEY
from services.websocket_service.internal_api.authentication import (
    SERVICE_ID_HEADER,
    ApiKey,
    is_service_id,
)
from services.websocket_service.internal_api.document import openapi_document
from services.websocket_service.internal_api.models import (
    ConnectionToDisconnect,
    Disconnection,
    DisconnectionAccepted,
    ErrorBody,
    History,
    HistoryQuery,
    JtiToRevoke,
    NotificationsToPublish,
    PresenceAnswer,
    PresenceQuery,
    PublishResults,
    RevocationMade,
    RevocationToMake,
    TokenToRevoke,
    UserToDisconnect,
    UserToRevoke,
)
from services.websocket_service.internal_api.presence import presence_of, presence_page
from services.websocket_service.internal_api.protocols import (
    DisconnectingProtocol,
    KeptHistory,
    KeptHistoryProtocol,
    PresenceProtocol,
    PublisherProtocol,
    RevokingProtocol,
)
from services.websocket_service.internal_api.publishing import publish_each
from services.websocket_service.internal_api.reading import history_json
from services.websocket_service.internal_api.requests import JSON_TYPE, read_object, read_query
from services.websocket_service.protocols import BackplaneUnavailableError

logger = create_service_logger(__name__)

_PREFIX: Final = "/internal/v1"

internal_blueprint = Blueprint("internal", __name__, url_prefix=_PREFIX)


def serve_internal_api(app: Quart, settings: Settings) -> None:
    """Add the routes and their document where a key is configured; else nothing of it is there."""
    key = settings.INTERNAL_API_KEY
    if key is None or not key.get_secret_value().strip():
        return
    app.register_blueprint(internal_blueprint)
    document = json.dumps(openapi_document(internal_blueprint))

    async def openapi() -> Response:
        return Response(document, content_type=JSON_TYPE)

    app.add_url_rule(f"{_PREFIX}/openapi.json", view_func=openapi, provide_automatic_options=False)


@internal_blueprint.before_request  # type: ignore[type-var]  # `inject` gives it its arguments
@inject
async def authenticate(settings: FromDishka[Settings], key: FromDishka[ApiKey]) -> None:
    """Before anything of the body is read: INVALID_API_KEY, or who calls in every log line."""
    correlation_id = extract_correlation_id(request)
    operation = request.endpoint or ""
    # Several keys count as none.
    presented = request.scope.get(INTERNAL_API_KEY_SCOPE_KEY)
    if not isinstance(presented, str) or not key.matches(presented.encode("latin1")):
        raise_invalid_api_key(settings.SERVICE_NAME, operation, correlation_id)
    service_ids = request.headers.getlist(SERVICE_ID_HEADER)
    if not any(service_ids):
        raise_missing_required_field(
            settings.SERVICE_NAME, operation, SERVICE_ID_HEADER, correlation_id
        )
    is_named = len(service_ids) == 1 and is_service_id(service_ids[0])
    # It is logged.
    if not is_named or key.matches(service_ids[0].encode("latin1")):
        raise_validation_error(
            settings.SERVICE_NAME,
            operation,
            SERVICE_ID_HEADER,
            "Expected 1 to 64 printable ASCII characters, once, and neither the key nor a token",
            correlation_id,
        )
    bind_contextvars(correlation_id=str(correlation_id), calling_service=service_ids[0])


@internal_blueprint.after_request
async def name_correlation_id(response: Response) -> Response:
    """Errors have it already, and may have one of their own."""
    response.headers.setdefault(CORRELATION_ID_HEADER, str(extract_correlation_id(request)))
    return response


@internal_blueprint.errorhandler(BackplaneUnavailableError)
async def on_backplane_unavailable(error: BackplaneUnavailableError) -> tuple[Response, int]:
    """503; the log alone has the reason, which names addresses."""
    detail = create_error_detail_with_context(
        ErrorCode.CONNECTION_ERROR,
        "Redis does not answer",
        current_app.config["SERVICE_NAME"],
        request.endpoint or "",
        extract_correlation_id(request),
        details={"target": "redis"},
        capture_stack=False,
    )
    logger.error("internal request failed", operation=detail.operation, reason=str(error))
    return create_error_response(detail)


@internal_blueprint.post("/notifications", provide_automatic_options=False)
@document_request(NotificationsToPublish)
@document_response(PublishResults)
@inject
async def publish_notifications(publisher: FromDishka[PublisherProtocol]) -> Response:
    """Publish to users, each notification with a result of its own."""
    wanted = NotificationsToPublish.model_validate(await read_object())
    results = await publish_each(
        publisher,
        wanted.notifications,
        source_service=request.headers[SERVICE_ID_HEADER],
        correlation_id=extract_correlation_id(request),
    )
    statuses = [result.status for result in results]
    logger.info(
        "notifications published for a service",
        published=statuses.count("published"),
        refused=statuses.count("refused"),
        failed=statuses.count("failed"),
    )
    return _answer(PublishResults(results=results))


@internal_blueprint.get("/history", provide_automatic_options=False)
@document_querystring(HistoryQuery)
@document_response(History)
@document_response(ErrorBody, HTTPStatus.NOT_FOUND)
@inject
async def read_history(
    settings: FromDishka[Settings], histories: FromDishka[KeptHistoryProtocol]
) -> Response:
    """Notifications that are kept for a user, oldest first.

    The newest ones, or those that follow an id. If nobody can prove which did, since it is too
    old, unknown, or from before a loss of data, that is 404 with `details.reason`.
    """
    query = read_query(HistoryQuery)
    found = await (
        histories.newest(query.user_id, limit=query.limit)
        if query.after is None
        else histories.after(query.user_id, query.after, limit=query.limit)
    )
    if not isinstance(found, KeptHistory):
        raise_resource_not_found(
            settings.SERVICE_NAME,
            "read_history",
            "Notification",
            query.after or "",
            extract_correlation_id(request),
            reason=found.value,
        )
    return Response(history_json(query.user_id, found), content_type=JSON_TYPE)


@internal_blueprint.get("/presence", provide_automatic_options=False)
@document_querystring(PresenceQuery)
@document_response(PresenceAnswer)
@inject
async def read_presence(presence: FromDishka[PresenceProtocol]) -> Response:
    """Whether a user is online, or all who are, page by page."""
    query = read_query(PresenceQuery)
    if query.user_id is not None:
        return _answer(await presence_of(presence, query.user_id))
    return _answer(await presence_page(presence, limit=query.limit, after=query.after))


@internal_blueprint.post("/disconnections", provide_automatic_options=False)
@document_request(Disconnection)
@document_response(DisconnectionAccepted, HTTPStatus.ACCEPTED)
@inject
async def disconnect(
    disconnecting: FromDishka[DisconnectingProtocol], presence: FromDishka[PresenceProtocol]
) -> Response:
    """End the connections of a user, or one of them, in whichever process they are."""
    body = await read_object()
    connections = None
    if "connection_id" in body:
        connection = ConnectionToDisconnect.model_validate(body)
        await disconnecting.disconnect_connection(
            connection.connection_id, reconnect=connection.reconnect
        )
    else:
        user = UserToDisconnect.model_validate(body)
        connections = len(await presence.of_user(user.user_id))
        await disconnecting.disconnect_user(user.user_id, reconnect=user.reconnect)
    logger.info(
        "disconnection requested",
        user_id=body.get("user_id"),
        connection_id=body.get("connection_id"),
        connections=connections,
    )
    return _answer(DisconnectionAccepted(connections=connections), HTTPStatus.ACCEPTED)


@internal_blueprint.post("/revocations", provide_automatic_options=False)
@document_request(RevocationToMake)
@document_response(RevocationMade, HTTPStatus.CREATED)
@document_response(ErrorBody, HTTPStatus.CONFLICT)
@inject
async def revoke(revoking: FromDishka[RevokingProtocol]) -> tuple[Response, int] | Response:
    """Let a token, or the earlier tokens of a user, count no more; their connections end.

    The answer says until when that is kept. 409 for a moment that makes no sense now: before 1970,
    `issued_before` later than now, or `expires_at` in more than ten years.
    """
    body = await read_object()
    try:
        if "user_id" in body:
            user = UserToRevoke.model_validate(body)
            revocation = await revoking.revoke_user(user.user_id, issued_before=user.issued_before)
        elif "jti" in body:
            jti = JtiToRevoke.model_validate(body)
            revocation = await revoking.revoke_token(jti.jti, expires_at=jti.expires_at)
        else:
            token = TokenToRevoke.model_validate(body)
            revocation = await revoking.revoke_token(token.token_id, expires_at=token.expires_at)
    except HuleEduError as error:
        if error.error_detail.error_code is not ErrorCode.VALIDATION_ERROR:
            raise
        # The models have judged everything but the moments, which need a clock.
        logger.info("revocation refused", message=error.error_detail.message)
        detail = error.error_detail.model_copy(
            update={"correlation_id": extract_correlation_id(request)}
        )
        return create_error_response(detail, HTTPStatus.CONFLICT)
    logger.info(
        "tokens revoked",
        user_id=revocation.user_id,
        token_id=revocation.token_id,
        expires_at=revocation.expires_at.isoformat(),
    )
    made = RevocationMade(
        token_id=revocation.token_id,
        user_id=revocation.user_id,
        issued_before=revocation.issued_before,
        expires_at=revocation.expires_at,
    )
    return _answer(made, HTTPStatus.CREATED)


def _answer(model: BaseModel, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(model.model_dump_json(), status=status, content_type=JSON_TYPE)
