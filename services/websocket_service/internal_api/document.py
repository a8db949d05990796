"""The OpenAPI document, made from the routes and their models.

It comes from an application of its own, which serves nothing: the service's other routes are not
in it, and nothing that Quart-Schema changes in an application reaches the service's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from quart import Blueprint, Quart
from quart_schema import APIKeySecurityScheme, Info, OpenAPIProvider, QuartSchema
from quart_schema.conversion import model_schema
from quart_schema.typing import Model
from werkzeug.routing.rules import Rule

from huleedu_service_libs.error_handling.correlation import CORRELATION_ID_HEADER
from services.websocket_service.credentials import INTERNAL_API_KEY_HEADER
from services.websocket_service.internal_api.authentication import (
    SERVICE_ID_HEADER,
    SERVICE_ID_PATTERN,
)
from services.websocket_service.internal_api.models import ErrorBody
from services.websocket_service.internal_api.requests import JSON_TYPE

# A fragment of the document, as JSON has it.
Json: TypeAlias = dict[str, Any]

_VERSION: Final = "1"
_SECURITY_SCHEME: Final = "internal_api_key"
_DESCRIPTION: Final = (
    "Other services publish to users, see who is connected and decide who stays. Every error has "
    "the same body, and every response the correlation id in X-Correlation-ID."
)
_HEADERS: Final = (
    {
        "name": SERVICE_ID_HEADER,
        "in": "header",
        "required": True,
        "description": "Who calls. What looks like a token, and the key, are refused",
        "schema": {"type": "string", "pattern": SERVICE_ID_PATTERN},
    },
    {
        "name": CORRELATION_ID_HEADER,
        "in": "header",
        "required": False,
        "description": "Taken over where it is a UUID; else one is made",
        "schema": {"type": "string"},
    },
)
_ERRORS: Final[Mapping[int, str]] = {
    400: "Something is missing or not as described here: VALIDATION_ERROR, with "
    "`details.validation_errors`, or MISSING_REQUIRED_FIELD for the header X-Service-ID",
    401: "The key is missing or wrong: INVALID_API_KEY",
    404: "Nobody can prove what followed `after`: RESOURCE_NOT_FOUND, with `details.reason`",
    408: "The body did not come within 10 s: TIMEOUT",
    409: "The moment makes no sense now: VALIDATION_ERROR",
    413: "The body has more than 16 MiB: INVALID_REQUEST",
    415: "The body is not application/json: INVALID_REQUEST",
    503: "Redis does not answer: CONNECTION_ERROR",
}
_ERRORS_OF_ALL: Final = (400, 401, 503)
_ERRORS_OF_BODIES: Final = (408, 413, 415)
_ERROR_SCHEMA: Final = {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}
_RESPONSE_HEADERS: Final = {
    CORRELATION_ID_HEADER: {"required": True, "schema": {"type": "string", "format": "uuid"}}
}


def openapi_document(blueprint: Blueprint) -> Json:
    """OpenAPI 3.1 of the blueprint's routes."""
    app = Quart(__name__, static_folder=None)
    app.register_blueprint(blueprint)
    schema = QuartSchema(
        app,
        openapi_path=None,
        info=Info(title="Internal API", version=_VERSION, description=_DESCRIPTION),
        security_schemes={
            _SECURITY_SCHEME: APIKeySecurityScheme(name=INTERNAL_API_KEY_HEADER, in_="header")
        },
        security=[{_SECURITY_SCHEME: []}],
        openapi_provider_class=_Provider,
    )
    return schema.openapi_provider.schema()


class _Provider(OpenAPIProvider):
    """Says what Quart-Schema leaves out: what is required, the headers and the errors."""

    def generate_rules(self) -> Iterable[Rule]:
        return sorted(super().generate_rules(), key=lambda rule: rule.rule)

    def build_paths(self, rule: Rule) -> tuple[Json, Json]:
        paths, components = super().build_paths(rule)
        for operation in _operations(paths):
            operation["description"] = operation["description"].strip()
            operation["parameters"] = [*operation["parameters"], *_HEADERS]
            errors = [status for status in operation["responses"] if status in _ERRORS]
            errors += _ERRORS_OF_ALL
            if "requestBody" in operation:
                operation["requestBody"]["required"] = True
                errors += _ERRORS_OF_BODIES
            responses = operation["responses"] | {status: _error(status) for status in errors}
            operation["responses"] = {
                str(int(status)): response | {"headers": _RESPONSE_HEADERS}
                for status, response in sorted(responses.items())
            }
        error_body, nested = self.build_response_object(ErrorBody, None)
        components[ErrorBody.__name__] = error_body["content"][JSON_TYPE]["schema"]
        return paths, components | nested

    def operation_id(self, _method: str, _path: str, func: Callable[..., object]) -> str:
        return func.__name__

    def build_querystring_parameters(self, model: type[Model]) -> tuple[list[Json], Json]:
        parameters, components = super().build_querystring_parameters(model)
        required = model_schema(model).get("required", ())
        for parameter in parameters:
            parameter["required"] = parameter["name"] in required
        return parameters, components


def _error(status: int) -> Json:
    return {"description": _ERRORS[status], "content": {JSON_TYPE: {"schema": _ERROR_SCHEMA}}}


def _operations(paths: Json) -> Iterator[Json]:
    for path in paths.values():
        yield from path.values()
