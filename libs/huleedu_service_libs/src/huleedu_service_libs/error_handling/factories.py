"""One function for each kind of error: it raises `HuleEduError` and never returns.

All take `service` and `operation` first, then what is particular to the error, then the id of the
request (None makes a fresh one). The particulars land in `details` under their parameter's name,
together with `additional_context`; Python itself refuses a context key that repeats a parameter.

`details` are public: they are sent to the caller. No secrets, no internal addresses.
"""

from collections.abc import Mapping
from typing import Any, NoReturn
from uuid import UUID

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling.error_detail_factory import (
    create_error_detail_with_context,
)
from huleedu_service_libs.error_handling.huleedu_error import HuleEduError

__all__ = [
    "raise_ai_feedback_service_error",
    "raise_authentication_error",
    "raise_authorization_error",
    "raise_circuit_breaker_open",
    "raise_cj_assessment_service_error",
    "raise_configuration_error",
    "raise_connection_error",
    "raise_content_service_error",
    "raise_external_service_error",
    "raise_initialization_failed",
    "raise_invalid_api_key",
    "raise_invalid_configuration",
    "raise_invalid_request",
    "raise_invalid_response",
    "raise_kafka_publish_error",
    "raise_missing_required_field",
    "raise_nlp_service_error",
    "raise_parsing_error",
    "raise_processing_error",
    "raise_quota_exceeded",
    "raise_rate_limit_error",
    "raise_request_queued",
    "raise_resource_not_found",
    "raise_service_unavailable",
    "raise_spellcheck_service_error",
    "raise_timeout_error",
    "raise_unknown_error",
    "raise_validation_error",
]


def _raise(
    error_code: ErrorCode,
    message: str,
    service: str,
    operation: str,
    correlation_id: UUID | None,
    *,
    details: Mapping[str, Any],
) -> NoReturn:
    raise HuleEduError(
        create_error_detail_with_context(
            error_code, message, service, operation, correlation_id, details
        )
    )


def raise_unknown_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """A failure that no other code describes."""
    _raise(
        ErrorCode.UNKNOWN_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_validation_error(
    service: str,
    operation: str,
    field: str,
    message: str,
    correlation_id: UUID | None,
    value: Any = None,
    **additional_context: Any,
) -> NoReturn:
    """What the caller sent for `field` is not acceptable.

    `value` is echoed to the caller; leave it out where it may be a secret.
    """
    if value is not None:
        additional_context["value"] = value
    _raise(
        ErrorCode.VALIDATION_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details={"field": field, **additional_context},
    )


def raise_resource_not_found(
    service: str,
    operation: str,
    resource_type: str,
    resource_id: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The caller asked for something that does not exist."""
    _raise(
        ErrorCode.RESOURCE_NOT_FOUND,
        f"{resource_type} with ID '{resource_id}' not found",
        service,
        operation,
        correlation_id,
        details={"resource_type": resource_type, "resource_id": resource_id, **additional_context},
    )


def raise_configuration_error(
    service: str,
    operation: str,
    config_key: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """A setting is wrong in a way that only its use brought to light."""
    _raise(
        ErrorCode.CONFIGURATION_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details={"config_key": config_key, **additional_context},
    )


def raise_external_service_error(
    service: str,
    operation: str,
    external_service: str,
    message: str,
    correlation_id: UUID | None,
    status_code: int | None = None,
    **additional_context: Any,
) -> NoReturn:
    """Another service failed us; `status_code` is what it answered, if it did."""
    if status_code is not None:
        additional_context["status_code"] = status_code
    _raise(
        ErrorCode.EXTERNAL_SERVICE_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details={"external_service": external_service, **additional_context},
    )


def raise_kafka_publish_error(
    service: str,
    operation: str,
    topic: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """An event could not be handed to Kafka."""
    _raise(
        ErrorCode.KAFKA_PUBLISH_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details={"topic": topic, **additional_context},
    )


def raise_missing_required_field(
    service: str,
    operation: str,
    field_name: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The caller left out a field."""
    _raise(
        ErrorCode.MISSING_REQUIRED_FIELD,
        f"Required field '{field_name}' is missing",
        service,
        operation,
        correlation_id,
        details={"field_name": field_name, **additional_context},
    )


def raise_invalid_configuration(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The configuration as a whole makes no sense; see also `raise_configuration_error`."""
    _raise(
        ErrorCode.INVALID_CONFIGURATION,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_timeout_error(
    service: str,
    operation: str,
    timeout_seconds: float,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """Something took longer than it may."""
    _raise(
        ErrorCode.TIMEOUT,
        message,
        service,
        operation,
        correlation_id,
        details={"timeout_seconds": timeout_seconds, **additional_context},
    )


def raise_connection_error(
    service: str,
    operation: str,
    target: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """No connection to `target`, which is named to the caller: no addresses."""
    _raise(
        ErrorCode.CONNECTION_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details={"target": target, **additional_context},
    )


def raise_service_unavailable(
    service: str,
    operation: str,
    unavailable_service: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """A service, possibly this one, takes no requests for now."""
    _raise(
        ErrorCode.SERVICE_UNAVAILABLE,
        message,
        service,
        operation,
        correlation_id,
        details={"unavailable_service": unavailable_service, **additional_context},
    )


def raise_rate_limit_error(
    service: str,
    operation: str,
    limit: int,
    window_seconds: float,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The caller sent more than `limit` requests in the window."""
    _raise(
        ErrorCode.RATE_LIMIT,
        message,
        service,
        operation,
        correlation_id,
        details={"limit": limit, "window_seconds": window_seconds, **additional_context},
    )


def raise_quota_exceeded(
    service: str,
    operation: str,
    quota_type: str,
    limit: int,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The caller already has all that it may have of something."""
    _raise(
        ErrorCode.QUOTA_EXCEEDED,
        message,
        service,
        operation,
        correlation_id,
        details={"quota_type": quota_type, "limit": limit, **additional_context},
    )


def raise_authentication_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The caller did not prove who it is."""
    _raise(
        ErrorCode.AUTHENTICATION_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_authorization_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The caller is known and may not do this."""
    _raise(
        ErrorCode.AUTHORIZATION_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_invalid_api_key(
    service: str, operation: str, correlation_id: UUID | None, **additional_context: Any
) -> NoReturn:
    """The caller's API key is absent or not one of ours; which of the two is not told."""
    _raise(
        ErrorCode.INVALID_API_KEY,
        "Invalid or missing API key",
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_invalid_request(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The request is wrong as a whole, rather than in one field."""
    _raise(
        ErrorCode.INVALID_REQUEST,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_invalid_response(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """Another service answered something that we cannot use."""
    _raise(
        ErrorCode.INVALID_RESPONSE,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_parsing_error(
    service: str,
    operation: str,
    parse_target: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """What the caller sent could not be parsed as `parse_target`."""
    _raise(
        ErrorCode.PARSING_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details={"parse_target": parse_target, **additional_context},
    )


def raise_circuit_breaker_open(
    service: str,
    operation: str,
    circuit_name: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """Not attempted, because recent attempts failed."""
    _raise(
        ErrorCode.CIRCUIT_BREAKER_OPEN,
        message,
        service,
        operation,
        correlation_id,
        details={"circuit_name": circuit_name, **additional_context},
    )


def raise_request_queued(
    service: str,
    operation: str,
    queue_name: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """Accepted for later (HTTP 202): no failure, but no result either."""
    _raise(
        ErrorCode.REQUEST_QUEUED,
        message,
        service,
        operation,
        correlation_id,
        details={"queue_name": queue_name, **additional_context},
    )


def raise_processing_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """Our own processing failed."""
    _raise(
        ErrorCode.PROCESSING_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_initialization_failed(
    service: str,
    operation: str,
    component: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """A component could not be started."""
    _raise(
        ErrorCode.INITIALIZATION_FAILED,
        message,
        service,
        operation,
        correlation_id,
        details={"component": component, **additional_context},
    )


def raise_content_service_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The content service failed us."""
    _raise(
        ErrorCode.CONTENT_SERVICE_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_spellcheck_service_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The spellcheck service failed us."""
    _raise(
        ErrorCode.SPELLCHECK_SERVICE_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_nlp_service_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The NLP service failed us."""
    _raise(
        ErrorCode.NLP_SERVICE_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_ai_feedback_service_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The AI feedback service failed us."""
    _raise(
        ErrorCode.AI_FEEDBACK_SERVICE_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )


def raise_cj_assessment_service_error(
    service: str,
    operation: str,
    message: str,
    correlation_id: UUID | None,
    **additional_context: Any,
) -> NoReturn:
    """The CJ assessment service failed us."""
    _raise(
        ErrorCode.CJ_ASSESSMENT_SERVICE_ERROR,
        message,
        service,
        operation,
        correlation_id,
        details=additional_context,
    )
