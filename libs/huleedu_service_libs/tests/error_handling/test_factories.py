import inspect
from collections.abc import Callable
from typing import Any, NoReturn
from uuid import UUID, uuid4

import pytest

from common_core.error_enums import ErrorCode
from huleedu_service_libs import error_handling
from huleedu_service_libs.error_handling import HuleEduError, factories

SERVICE_FACTORIES = ("content", "spellcheck", "nlp", "ai_feedback", "cj_assessment")

# name: (code, named parameters in their order, message where the factory has one of its own)
CONTRACT: dict[str, tuple[ErrorCode, dict[str, Any], str | None]] = {
    "unknown_error": (ErrorCode.UNKNOWN_ERROR, {}, None),
    "validation_error": (ErrorCode.VALIDATION_ERROR, {"field": "email"}, None),
    "resource_not_found": (
        ErrorCode.RESOURCE_NOT_FOUND,
        {"resource_type": "Batch", "resource_id": "b-1"},
        "Batch with ID 'b-1' not found",
    ),
    "configuration_error": (ErrorCode.CONFIGURATION_ERROR, {"config_key": "REDIS_URL"}, None),
    "external_service_error": (
        ErrorCode.EXTERNAL_SERVICE_ERROR,
        {"external_service": "aggregator"},
        None,
    ),
    "kafka_publish_error": (ErrorCode.KAFKA_PUBLISH_ERROR, {"topic": "t.v1"}, None),
    "missing_required_field": (
        ErrorCode.MISSING_REQUIRED_FIELD,
        {"field_name": "batch_id"},
        "Required field 'batch_id' is missing",
    ),
    "invalid_configuration": (ErrorCode.INVALID_CONFIGURATION, {}, None),
    "timeout_error": (ErrorCode.TIMEOUT, {"timeout_seconds": 2.5}, None),
    "connection_error": (ErrorCode.CONNECTION_ERROR, {"target": "redis"}, None),
    "service_unavailable": (
        ErrorCode.SERVICE_UNAVAILABLE,
        {"unavailable_service": "websocket_service"},
        None,
    ),
    "rate_limit_error": (ErrorCode.RATE_LIMIT, {"limit": 100, "window_seconds": 60}, None),
    "quota_exceeded": (
        ErrorCode.QUOTA_EXCEEDED,
        {"quota_type": "connections_per_user", "limit": 5},
        None,
    ),
    "authentication_error": (ErrorCode.AUTHENTICATION_ERROR, {}, None),
    "authorization_error": (ErrorCode.AUTHORIZATION_ERROR, {}, None),
    "invalid_api_key": (ErrorCode.INVALID_API_KEY, {}, "Invalid or missing API key"),
    "invalid_request": (ErrorCode.INVALID_REQUEST, {}, None),
    "invalid_response": (ErrorCode.INVALID_RESPONSE, {}, None),
    "parsing_error": (ErrorCode.PARSING_ERROR, {"parse_target": "JSON"}, None),
    "circuit_breaker_open": (ErrorCode.CIRCUIT_BREAKER_OPEN, {"circuit_name": "llm"}, None),
    "request_queued": (ErrorCode.REQUEST_QUEUED, {"queue_name": "llm"}, None),
    "processing_error": (ErrorCode.PROCESSING_ERROR, {}, None),
    "initialization_failed": (ErrorCode.INITIALIZATION_FAILED, {"component": "hub"}, None),
    **{
        f"{name}_service_error": (ErrorCode[f"{name.upper()}_SERVICE_ERROR"], {}, None)
        for name in SERVICE_FACTORIES
    },
}
OPTIONAL: dict[str, dict[str, Any]] = {
    "validation_error": {"value": "nobody@"},
    "external_service_error": {"status_code": 418},
}


def factory(name: str) -> Callable[..., NoReturn]:
    found: Callable[..., NoReturn] = vars(error_handling)[f"raise_{name}"]
    return found


def raised(name: str, *arguments: Any, **context: Any) -> HuleEduError:
    with pytest.raises(HuleEduError) as caught:
        factory(name)(*arguments, **context)
    return caught.value


def test_every_factory_of_the_contract_exists_and_no_other() -> None:
    """Services find each error they raise under the name that was agreed."""
    assert set(factories.__all__) == {f"raise_{name}" for name in CONTRACT}


@pytest.mark.parametrize("name", CONTRACT)
def test_a_factory_raises_its_error(name: str) -> None:
    """The error says what, where and for whom, and its details hold what was named."""
    code, named, fixed_message = CONTRACT[name]
    correlation_id = uuid4()
    message = [] if fixed_message else ["It went wrong"]

    error = raised(name, "svc", "op", *named.values(), *message, correlation_id, attempt=3)

    detail = error.error_detail
    assert detail.error_code is code
    assert detail.message == (fixed_message or "It went wrong")
    assert (detail.service, detail.operation) == ("svc", "op")
    assert detail.correlation_id == correlation_id
    assert detail.details == {**named, "attempt": 3}


@pytest.mark.parametrize("name", CONTRACT)
def test_a_factory_is_typed_and_takes_the_agreed_order(name: str) -> None:
    """An editor shows each factory's own parameters, in the order of the contract."""
    _, named, fixed_message = CONTRACT[name]
    signature = inspect.signature(factory(name), eval_str=True)
    expected = ["service", "operation", *named, *([] if fixed_message else ["message"])]
    expected += ["correlation_id", *OPTIONAL.get(name, {}), "additional_context"]
    assert list(signature.parameters) == expected
    assert signature.parameters["correlation_id"].annotation == UUID | None
    assert signature.return_annotation is NoReturn


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_value_is_told_only_if_there_is_one(name: str) -> None:
    """Details have no empty entries."""
    (key, value), *_ = OPTIONAL[name].items()
    (subject,) = CONTRACT[name][1].values()
    without = raised(name, "svc", "op", subject, "It went wrong", None)
    assert key not in without.error_detail.details
    with_value = raised(name, "svc", "op", subject, "It went wrong", None, value)
    assert with_value.error_detail.details[key] == value


@pytest.mark.parametrize("name", CONTRACT)
def test_without_a_correlation_id_each_error_has_its_own(name: str) -> None:
    """Two failures outside of any request can still be told apart in the logs."""
    _, named, fixed_message = CONTRACT[name]
    arguments = ["svc", "op", *named.values(), *([] if fixed_message else ["m"]), None]
    first, second = raised(name, *arguments), raised(name, *arguments)
    assert first.correlation_id != second.correlation_id


def test_context_cannot_replace_what_was_named() -> None:
    """Extra context that repeats a named value is a mistake in the call, not a silent overwrite."""
    with pytest.raises(TypeError, match="topic"):
        factory("kafka_publish_error")("svc", "op", "a.v1", "m", None, topic="b.v1")


def test_the_stack_ends_where_the_error_was_raised() -> None:
    """Whoever reads the stack trace lands in the code that failed, not in the library."""
    stack = raised("timeout_error", "svc", "op", 1, "m", None).error_detail.stack_trace
    assert stack is not None
    last_line_of_code = stack.strip().splitlines()[-1].strip()
    assert last_line_of_code == "factory(name)(*arguments, **context)"
