"""What callers of the internal API send and get: the OpenAPI document is made from these.

A body or a query with a field that is not here is refused.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
)
from pydantic_core import PydanticCustomError

from common_core.timestamps import UtcDatetime
from huleedu_service_libs.bounded_ids import MAX_ID_BYTES
from huleedu_service_libs.notifications import MAX_EXPIRY_S

MAX_NOTIFICATIONS: Final = 1_000
MAX_PAGE_SIZE: Final = 1_000
DEFAULT_PAGE_SIZE: Final = 100
MAX_QUERIED_ID_BYTES: Final = 4_096
"""A URL has three characters for a byte, and servers take 16 KiB of a request's head."""

# RFC 3339, section 5.6.
_MOMENT: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)
# RFC 7515, section 3.1; its first part is the Base64 of `{"` or `{ ` and so on.
_COMPACT_TOKEN: Final = re.compile(r"(?<![\w-])ey[JA][\w-]*+\.[\w-]*+\.", re.ASCII)


def _moment(value: object) -> object:
    # Pydantic takes numbers too, in texts as well, and guesses their unit.
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        return datetime.fromisoformat(value.upper())
    raise PydanticCustomError(
        "datetime_parsing",
        "Input should be a date, a time and its offset, as RFC 3339 has them",
    )


def _at_most_in_utf8(max_bytes: int) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if len(text.encode()) > max_bytes:
            raise PydanticCustomError(
                "string_too_long",
                "Input should have at most {max_bytes} bytes in UTF-8",
                {"max_bytes": max_bytes},
            )
        return text

    return checked


def _no_token(text: str) -> str:
    # It would be logged, and mean nobody.
    if _COMPACT_TOKEN.search(text):
        raise PydanticCustomError("token", "Input should be an id, not a token")
    return text


def _digits_as_int(value: object) -> object:
    # A query holds texts alone, and pydantic reads more spellings of a number than JSON has.
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


Text: TypeAlias = Annotated[str, Field(min_length=1)]
BoundedId: TypeAlias = Annotated[
    str,
    Field(
        min_length=1, max_length=MAX_ID_BYTES, description=f"{MAX_ID_BYTES} bytes of UTF-8 at most"
    ),
    AfterValidator(_at_most_in_utf8(MAX_ID_BYTES)),
    AfterValidator(_no_token),
]
QueriedId: TypeAlias = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_QUERIED_ID_BYTES,
        description=f"{MAX_QUERIED_ID_BYTES} bytes of UTF-8 at most",
    ),
    AfterValidator(_at_most_in_utf8(MAX_QUERIED_ID_BYTES)),
]
ConnectionId: TypeAlias = Annotated[
    str, Field(pattern=r"^[0-9a-f]{32}$", description="`connection_id` of its welcome frame")
]
Moment: TypeAlias = Annotated[UtcDatetime, BeforeValidator(_moment)]
PageSize: TypeAlias = Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE), BeforeValidator(_digits_as_int)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class NotificationToPublish(_Sent):
    """What a user is told."""

    user_id: BoundedId
    event_type: Text
    data: dict[str, Any] = Field(description="A JSON object, together with the rest 64 KiB at most")
    durable: bool = Field(
        default=True,
        description="Kept in the user's history and replayed to clients that were away; else at "
        "most once",
    )
    idempotency_key: Text | None = Field(
        default=None,
        description="Of all notifications of the user with this key only the first is published; "
        "256 bytes at most",
    )
    collapse_key: Text | None = Field(
        default=None,
        description="A newer one with this key replaces this one wherever it still waits; 256 "
        "bytes at most",
    )
    expires_in_s: Annotated[float, Field(gt=0, le=MAX_EXPIRY_S, allow_inf_nan=False)] | None = (
        Field(default=None, description="Seconds after which it is not replayed any more")
    )
    correlation_id: Text | None = Field(
        default=None, description="Else the request's; 256 bytes at most"
    )
    source_service: Text | None = Field(
        default=None, description="Else what X-Service-ID says; 256 bytes at most"
    )


class NotificationsToPublish(_Sent):
    """Notifications for one user or several, published in their order."""

    notifications: list[
        Annotated[NotificationToPublish | Any, Field(union_mode="left_to_right")]
    ] = Field(
        min_length=1,
        max_length=MAX_NOTIFICATIONS,
        description="One that is no `NotificationToPublish` is refused by itself, in its result",
    )


class ItemError(_Answered):
    """What is wrong with one of many."""

    code: str
    message: str
    details: dict[str, JsonValue]


class Published(_Answered):
    """It is with Redis, and kept there if it is durable."""

    status: Literal["published"] = "published"
    id: str | None = Field(
        description="Null for one that is not durable; the first one's for a duplicate"
    )
    receivers: int = Field(ge=0, description="Processes that Redis handed it to")
    duplicate: bool = Field(description="Its idempotency key was used before: nothing was done")


class Refused(_Answered):
    """It can't be published, and was not."""

    status: Literal["refused"] = "refused"
    error: ItemError


class Failed(_Answered):
    """Redis has not confirmed it: it may have been published.

    Repeating it is safe with an idempotency key.
    """

    status: Literal["failed"] = "failed"
    error: ItemError


Result: TypeAlias = Annotated[Published | Refused | Failed, Field(discriminator="status")]


class PublishResults(_Answered):
    """One result for each notification, in their order."""

    results: list[Result]


class HistoryQuery(_Sent):
    """Whose history, and which part of it."""

    user_id: QueriedId
    limit: PageSize = Field(default=DEFAULT_PAGE_SIZE, description="How many at most")
    after: Text | None = Field(
        default=None,
        description="An id: the notifications that follow it. Without it, the newest ones",
    )


class KeptNotification(_Answered):
    """One notification of a history."""

    id: str
    expires_at: UtcDatetime | None = Field(description="Not replayed from then on; null: never")
    notification: dict[str, JsonValue] = Field(description="As it was published")


class History(_Answered):
    """Notifications that are kept for a user, oldest first."""

    user_id: str
    notifications: list[KeptNotification]
    newest: str | None = Field(
        description="The id of the user's newest durable notification; null where none is known"
    )


class UserToDisconnect(_Sent):
    """All connections of a user."""

    user_id: BoundedId
    reconnect: bool = Field(default=False, description="Whether their clients are to come back")


class ConnectionToDisconnect(_Sent):
    """One connection."""

    connection_id: ConnectionId
    reconnect: bool = Field(default=False, description="Whether its client is to come back")


class Disconnection(RootModel[UserToDisconnect | ConnectionToDisconnect]):
    """Who has to go."""


class DisconnectionAccepted(_Answered):
    """All processes of the service are told; those that are there hear it within a second."""

    connections: int | None = Field(
        ge=0,
        description="How many the user has; null for a single connection, which nobody looks for",
    )


_EXPIRY: Final = "Its `exp`, if that is known; one that has passed counts as unknown"


class TokenToRevoke(_Sent):
    """One token."""

    token_id: BoundedId = Field(description="Its `jti`")
    expires_at: Moment | None = Field(default=None, description=_EXPIRY)


class JtiToRevoke(_Sent):
    """The same under the claim's own name."""

    jti: BoundedId
    expires_at: Moment | None = Field(default=None, description=_EXPIRY)


class UserToRevoke(_Sent):
    """All tokens of a user that were issued before a moment."""

    user_id: BoundedId
    issued_before: Moment | None = Field(default=None, description="Without it: before now")


class RevocationToMake(RootModel[TokenToRevoke | JtiToRevoke | UserToRevoke]):
    """Which tokens count no more."""


class RevocationMade(_Answered):
    """A revocation as it is kept: of a token, or of a user's tokens that were issued earlier."""

    token_id: str | None
    user_id: str | None
    issued_before: UtcDatetime | None
    expires_at: UtcDatetime = Field(description="Kept until then, and ten minutes more")


class PresenceQuery(_Sent):
    """Of one user, or of all who are online."""

    user_id: QueriedId | None = Field(
        default=None, description="This user alone; `limit` and `after` are ignored then"
    )
    limit: PageSize = Field(
        default=DEFAULT_PAGE_SIZE,
        description="How many users at most; ignored together with `user_id`",
    )
    after: Text | None = Field(
        default=None,
        description="A user's id: those behind it in order; ignored together with `user_id`",
    )


class Presence(_Answered):
    """Whether a user is online, by the leases that all processes of the service hold."""

    user_id: str
    online: bool
    connections: int = Field(ge=0)
    since: UtcDatetime | None = Field(
        description="When the oldest of the connections began; null where there is none"
    )


class PresencePage(_Answered):
    """Users who are online, by their ids."""

    users: list[Presence]
    next: str | None = Field(description="`after` of the following page; null on the last one")


class PresenceAnswer(RootModel[Presence | PresencePage]):
    """One user where `user_id` was given, else a page of users."""


class PublicError(_Answered):
    """What went wrong."""

    code: str
    message: str
    correlation_id: UUID
    service: str
    timestamp: UtcDatetime
    details: JsonValue


class ErrorBody(_Answered):
    """The body of every error."""

    error: PublicError
