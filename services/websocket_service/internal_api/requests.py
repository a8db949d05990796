"""What callers have sent, checked.

Whatever is wrong with it is a `pydantic.ValidationError`, which leaves the service as
VALIDATION_ERROR with everything that is wrong and nothing of what was sent.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from quart import request
from werkzeug.exceptions import UnsupportedMediaType

from huleedu_service_libs import strict_json

JSON_TYPE = "application/json"

Model = TypeVar("Model", bound=BaseModel)


async def read_object() -> dict[str, Any]:
    """The body's JSON object.

    Raises ValidationError, UnsupportedMediaType (415), RequestEntityTooLarge (413) or
    RequestTimeout (408).
    """
    if request.mimetype != JSON_TYPE:
        raise UnsupportedMediaType(f"The body has to be {JSON_TYPE}")
    body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    try:
        parsed = strict_json.loads(body.decode(), unique_names=True)
    except json.JSONDecodeError as error:
        raise _invalid(
            "json_invalid", f"The body is not JSON, from line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:
        raise _invalid(
            "json_invalid",
            "The body is not JSON in UTF-8, has two members of one name in an object, a number "
            "that is none, or too many levels",
        ) from None
    if not isinstance(parsed, dict):
        raise _invalid("dict_type", "The body is not a JSON object")
    return parsed


def read_query(model: type[Model]) -> Model:
    """The query's parameters; raises ValidationError, also for one that is given twice."""
    return model.model_validate(
        {name: values[0] if len(values) == 1 else values for name, values in request.args.lists()}
    )


def _invalid(type_: str, message: str) -> ValidationError:
    problem = PydanticCustomError(type_, message)
    return ValidationError.from_exception_data(
        "body", [InitErrorDetails(type=problem, loc=(), input=None)]
    )
