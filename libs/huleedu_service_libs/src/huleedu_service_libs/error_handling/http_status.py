"""Error codes and HTTP statuses, both ways; no web framework in sight."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from common_core.error_enums import (
    AnyErrorCode,
    ClassManagementErrorCode,
    ErrorCode,
    FileValidationErrorCode,
)

__all__ = ["CLIENT_CLOSED_REQUEST", "ERROR_CODE_TO_HTTP_STATUS", "error_code_for_http_status"]

# nginx's status for a client that hung up before it was answered: for logs and metrics.
CLIENT_CLOSED_REQUEST: Final = 499

# Every code is listed, so that a new one without a status is an error in a test rather than a 500.
ERROR_CODE_TO_HTTP_STATUS: Final[Mapping[AnyErrorCode, int]] = MappingProxyType(
    {
        ErrorCode.REQUEST_QUEUED: 202,
        ErrorCode.VALIDATION_ERROR: 400,
        ErrorCode.MISSING_REQUIRED_FIELD: 400,
        ErrorCode.INVALID_REQUEST: 400,
        ErrorCode.PARSING_ERROR: 400,
        ErrorCode.AUTHENTICATION_ERROR: 401,
        ErrorCode.INVALID_API_KEY: 401,
        ErrorCode.AUTHORIZATION_ERROR: 403,
        ErrorCode.RESOURCE_NOT_FOUND: 404,
        ErrorCode.RATE_LIMIT: 429,
        ErrorCode.QUOTA_EXCEEDED: 429,
        ErrorCode.UNKNOWN_ERROR: 500,
        ErrorCode.CONFIGURATION_ERROR: 500,
        ErrorCode.INVALID_CONFIGURATION: 500,
        ErrorCode.PROCESSING_ERROR: 500,
        ErrorCode.INITIALIZATION_FAILED: 500,
        ErrorCode.EXTERNAL_SERVICE_ERROR: 502,
        ErrorCode.INVALID_RESPONSE: 502,
        ErrorCode.CONTENT_SERVICE_ERROR: 502,
        ErrorCode.SPELLCHECK_SERVICE_ERROR: 502,
        ErrorCode.NLP_SERVICE_ERROR: 502,
        ErrorCode.AI_FEEDBACK_SERVICE_ERROR: 502,
        ErrorCode.CJ_ASSESSMENT_SERVICE_ERROR: 502,
        ErrorCode.LLM_PROVIDER_SERVICE_ERROR: 502,
        ErrorCode.KAFKA_PUBLISH_ERROR: 503,
        ErrorCode.CONNECTION_ERROR: 503,
        ErrorCode.SERVICE_UNAVAILABLE: 503,
        ErrorCode.CIRCUIT_BREAKER_OPEN: 503,
        ErrorCode.TIMEOUT: 504,
        ClassManagementErrorCode.COURSE_VALIDATION_ERROR: 400,
        ClassManagementErrorCode.COURSE_NOT_FOUND: 404,
        ClassManagementErrorCode.CLASS_NOT_FOUND: 404,
        ClassManagementErrorCode.STUDENT_NOT_FOUND: 404,
        ClassManagementErrorCode.MULTIPLE_COURSE_ERROR: 409,
        FileValidationErrorCode.EMPTY_CONTENT: 400,
        FileValidationErrorCode.CONTENT_TOO_SHORT: 400,
        FileValidationErrorCode.CONTENT_TOO_LONG: 400,
        FileValidationErrorCode.ENCRYPTED_FILE_UNSUPPORTED: 400,
        FileValidationErrorCode.UNKNOWN_VALIDATION_ERROR: 400,
        FileValidationErrorCode.RAW_STORAGE_FAILED: 500,
        FileValidationErrorCode.TEXT_EXTRACTION_FAILED: 500,
    }
)

# Statuses that a framework answers with by itself and that say more than "bad request" or "broken".
_STATUS_TO_ERROR_CODE: Final[Mapping[int, ErrorCode]] = {
    HTTPStatus.UNAUTHORIZED: ErrorCode.AUTHENTICATION_ERROR,
    HTTPStatus.FORBIDDEN: ErrorCode.AUTHORIZATION_ERROR,
    HTTPStatus.NOT_FOUND: ErrorCode.RESOURCE_NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT: ErrorCode.TIMEOUT,
    HTTPStatus.GONE: ErrorCode.RESOURCE_NOT_FOUND,
    HTTPStatus.UNPROCESSABLE_ENTITY: ErrorCode.VALIDATION_ERROR,
    HTTPStatus.TOO_MANY_REQUESTS: ErrorCode.RATE_LIMIT,
    HTTPStatus.BAD_GATEWAY: ErrorCode.EXTERNAL_SERVICE_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE: ErrorCode.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: ErrorCode.TIMEOUT,
}


def error_code_for_http_status(status: int) -> ErrorCode:
    """The code for an HTTP error that a framework raised by itself.

    Statuses without a code of their own are INVALID_REQUEST below 500 and UNKNOWN_ERROR from there.
    The framework's status is kept in the response: a 405 stays a 405, though INVALID_REQUEST is
    otherwise a 400.
    """
    fallback = (
        ErrorCode.UNKNOWN_ERROR
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR
        else ErrorCode.INVALID_REQUEST
    )
    return _STATUS_TO_ERROR_CODE.get(status, fallback)
