"""Structured errors: one exception, one factory for each kind, one public body.

Nothing here needs a web framework. Handlers for Quart are in
`huleedu_service_libs.error_handling.quart`, those for FastAPI in
`huleedu_service_libs.error_handling.fastapi`.
"""

from huleedu_service_libs.error_handling.correlation import (
    CORRELATION_ID_HEADER,
    CORRELATION_ID_QUERY_PARAMETER,
    parse_correlation_id,
)
from huleedu_service_libs.error_handling.error_detail_factory import (
    create_error_detail_with_context,
)
from huleedu_service_libs.error_handling.factories import (
    raise_ai_feedback_service_error,
    raise_authentication_error,
    raise_authorization_error,
    raise_circuit_breaker_open,
    raise_cj_assessment_service_error,
    raise_configuration_error,
    raise_connection_error,
    raise_content_service_error,
    raise_external_service_error,
    raise_initialization_failed,
    raise_invalid_api_key,
    raise_invalid_configuration,
    raise_invalid_request,
    raise_invalid_response,
    raise_kafka_publish_error,
    raise_missing_required_field,
    raise_nlp_service_error,
    raise_parsing_error,
    raise_processing_error,
    raise_quota_exceeded,
    raise_rate_limit_error,
    raise_request_queued,
    raise_resource_not_found,
    raise_service_unavailable,
    raise_spellcheck_service_error,
    raise_timeout_error,
    raise_unknown_error,
    raise_validation_error,
)
from huleedu_service_libs.error_handling.failed_request import (
    ErrorResponse,
    FailedRequest,
    log_failure,
    log_unexpected,
)
from huleedu_service_libs.error_handling.http_status import (
    CLIENT_CLOSED_REQUEST,
    ERROR_CODE_TO_HTTP_STATUS,
    error_code_for_http_status,
)
from huleedu_service_libs.error_handling.huleedu_error import (
    HuleEduError,
)
from huleedu_service_libs.error_handling.public_error import (
    PublicError,
    PublicErrorBody,
    PublicValidationError,
    public_error_body,
    public_validation_errors,
)

__all__ = [
    "CLIENT_CLOSED_REQUEST",
    "CORRELATION_ID_HEADER",
    "CORRELATION_ID_QUERY_PARAMETER",
    "ERROR_CODE_TO_HTTP_STATUS",
    "ErrorResponse",
    "FailedRequest",
    "HuleEduError",
    "PublicError",
    "PublicErrorBody",
    "PublicValidationError",
    "create_error_detail_with_context",
    "error_code_for_http_status",
    "log_failure",
    "log_unexpected",
    "parse_correlation_id",
    "public_error_body",
    "public_validation_errors",
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
