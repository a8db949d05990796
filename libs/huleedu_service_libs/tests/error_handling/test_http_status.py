from typing import get_args

import pytest

from common_core.error_enums import (
    AnyErrorCode,
    ClassManagementErrorCode,
    ErrorCode,
    FileValidationErrorCode,
)
from huleedu_service_libs.error_handling import (
    ERROR_CODE_TO_HTTP_STATUS,
    error_code_for_http_status,
)

# Written out from the contract, group by group as it stands there.
CONTRACT = {
    202: "REQUEST_QUEUED",
    400: "VALIDATION_ERROR MISSING_REQUIRED_FIELD INVALID_REQUEST PARSING_ERROR "
    "COURSE_VALIDATION_ERROR EMPTY_CONTENT CONTENT_TOO_SHORT CONTENT_TOO_LONG "
    "ENCRYPTED_FILE_UNSUPPORTED UNKNOWN_VALIDATION_ERROR",
    401: "AUTHENTICATION_ERROR INVALID_API_KEY",
    403: "AUTHORIZATION_ERROR",
    404: "RESOURCE_NOT_FOUND COURSE_NOT_FOUND CLASS_NOT_FOUND STUDENT_NOT_FOUND",
    409: "MULTIPLE_COURSE_ERROR",
    429: "RATE_LIMIT QUOTA_EXCEEDED",
    500: "UNKNOWN_ERROR CONFIGURATION_ERROR INVALID_CONFIGURATION PROCESSING_ERROR "
    "INITIALIZATION_FAILED RAW_STORAGE_FAILED TEXT_EXTRACTION_FAILED",
    502: "EXTERNAL_SERVICE_ERROR INVALID_RESPONSE CONTENT_SERVICE_ERROR SPELLCHECK_SERVICE_ERROR "
    "NLP_SERVICE_ERROR AI_FEEDBACK_SERVICE_ERROR CJ_ASSESSMENT_SERVICE_ERROR "
    "LLM_PROVIDER_SERVICE_ERROR",
    503: "KAFKA_PUBLISH_ERROR CONNECTION_ERROR SERVICE_UNAVAILABLE CIRCUIT_BREAKER_OPEN",
    504: "TIMEOUT",
}


def test_every_code_has_the_status_of_the_contract() -> None:
    """A client can tell its own mistakes from ours by the status alone."""
    expected = {code: status for status, codes in CONTRACT.items() for code in codes.split()}
    assert {code.value: status for code, status in ERROR_CODE_TO_HTTP_STATUS.items()} == expected
    every_code: set[AnyErrorCode] = {code for enum in get_args(AnyErrorCode) for code in enum}
    assert set(ERROR_CODE_TO_HTTP_STATUS) == every_code


def test_the_map_cannot_be_changed() -> None:
    """One service cannot change what statuses mean to another in the same process."""
    with pytest.raises(TypeError):
        ERROR_CODE_TO_HTTP_STATUS[ErrorCode.TIMEOUT] = 200  # type: ignore[index] # the point


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ErrorCode.INVALID_REQUEST),
        (401, ErrorCode.AUTHENTICATION_ERROR),
        (403, ErrorCode.AUTHORIZATION_ERROR),
        (404, ErrorCode.RESOURCE_NOT_FOUND),
        (405, ErrorCode.INVALID_REQUEST),
        (408, ErrorCode.TIMEOUT),
        (410, ErrorCode.RESOURCE_NOT_FOUND),
        (413, ErrorCode.INVALID_REQUEST),
        (415, ErrorCode.INVALID_REQUEST),
        (422, ErrorCode.VALIDATION_ERROR),
        (429, ErrorCode.RATE_LIMIT),
        (451, ErrorCode.INVALID_REQUEST),
        (500, ErrorCode.UNKNOWN_ERROR),
        (501, ErrorCode.UNKNOWN_ERROR),
        (502, ErrorCode.EXTERNAL_SERVICE_ERROR),
        (503, ErrorCode.SERVICE_UNAVAILABLE),
        (504, ErrorCode.TIMEOUT),
    ],
)
def test_a_frameworks_errors_have_codes(status: int, code: ErrorCode) -> None:
    """An error that the framework raises by itself reads like one of ours."""
    assert error_code_for_http_status(status) is code


@pytest.mark.parametrize("status", range(400, 600))
def test_blame_is_not_shifted(status: int) -> None:
    """A client's mistake never gets a code that reads as ours, nor the other way round."""
    code = error_code_for_http_status(status)
    if code is not ErrorCode.TIMEOUT:  # 408 and 504 share it
        assert (ERROR_CODE_TO_HTTP_STATUS[code] < 500) == (status < 500)


def test_domain_codes_are_found_by_what_json_holds() -> None:
    """A code read from JSON as a domain's finds that domain's status."""
    assert ERROR_CODE_TO_HTTP_STATUS[ClassManagementErrorCode("CLASS_NOT_FOUND")] == 404
    assert ERROR_CODE_TO_HTTP_STATUS[FileValidationErrorCode("RAW_STORAGE_FAILED")] == 500
