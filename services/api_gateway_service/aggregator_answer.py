"""What the result aggregator says of a batch, taken apart; pure."""

import math
from dataclasses import dataclass
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from services.api_gateway_service.protocols import BatchStatus
from services.api_gateway_service.status_mapping import PUBLIC_STATUS_OF

_USER: Final = "user_id"


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, JsonValue]

    user_id: str
    overall_status: str


@dataclass(frozen=True, slots=True)
class AggregatorAnswer:
    """Whose the batch is, and what its owner may see of it.

    `status.details` is the whole body without any member `user_id`, however deep it stands: the
    owner knows who they are, and other people's ids are none of their business.
    """

    user_id: str
    status: BatchStatus

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises ValueError, in words that quote nothing but the status, for anything unexpected.

        That is what is no JSON (NaN and Infinity included), no object, without a `user_id` or an
        `overall_status`, or with a status that nobody knows.
        """
        try:
            parsed = _Body.model_validate_json(body)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, problem['loc']))} {problem['msg']}") from None
        status = PUBLIC_STATUS_OF.get(parsed.overall_status)
        if status is None:
            raise ValueError(f"overall_status is {parsed.overall_status!r}")
        members = {"overall_status": parsed.overall_status, **parsed.__pydantic_extra__}
        details = {name: _without_users(value) for name, value in members.items()}
        return cls(parsed.user_id, BatchStatus(status, details))


def _without_users(value: JsonValue) -> JsonValue:
    # The parser lets nothing be nested deeply enough for this to fail.
    match value:
        case dict():
            return {name: _without_users(item) for name, item in value.items() if name != _USER}
        case list():
            return [_without_users(item) for item in value]
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is not JSON")
        case _:
            return value
