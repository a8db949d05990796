"""`fastapi_handlers` under a shorter name."""

from huleedu_service_libs.error_handling.fastapi_handlers import (
    ERROR_CODE_TO_HTTP_STATUS,
    answered_error_code,
    create_error_response,
    extract_correlation_id,
    register_error_handlers,
)

__all__ = [
    "ERROR_CODE_TO_HTTP_STATUS",
    "answered_error_code",
    "create_error_response",
    "extract_correlation_id",
    "register_error_handlers",
]
