"""What is said to all processes of the WebSocket service: who has to go.

Over one Redis channel, see `redis_channels.control_channel`. A message is a JSON object of at most
`MAX_MESSAGE_BYTES` with a `type`; fields that a reader does not know are passed over.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from huleedu_service_libs import strict_json
from huleedu_service_libs.bounded_ids import check_bounded_id, is_bounded_id
from huleedu_service_libs.epoch_microseconds import epoch_us, moment_at
from huleedu_service_libs.error_handling import raise_missing_required_field
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_channels import (
    DEFAULT_CHANNEL_PREFIX,
    ChannelName,
    control_channel,
)
from huleedu_service_libs.revocation_list import Revocation

MAX_MESSAGE_BYTES: Final = 200_000
"""Two ids of control characters, which JSON writes with six bytes each, and all else fit."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """Tokens count no more: connections that were admitted with them end."""

    revocation: Revocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect:
    """Connections end: a user's, or the one with that id; with both given, it if it is the user's.

    Without either it would be everybody's: a ValueError.
    """

    user_id: str | None = None
    connection_id: str | None = None
    reconnect: bool = False
    """Whether their clients are to come back."""

    def __post_init__(self) -> None:
        if self.user_id is None and self.connection_id is None:
            raise ValueError("a disconnect has a user_id or a connection_id")


@dataclass(frozen=True, slots=True)
class ConfirmLeases:
    """Whoever has connections of the user proves that it is alive: it renews their leases now."""

    user_id: str


ControlMessage = Revoked | Disconnect | ConfirmLeases


class ControlMessageError(ValueError):
    """What was published is no control message. The text does not quote it."""


def encode(message: ControlMessage) -> bytes:
    """Compact JSON; moments in microseconds since the epoch."""
    match message:
        case Revoked(revocation):
            issued_before = revocation.issued_before
            fields: dict[str, str | int | None] = {
                "type": "revoked",
                "user_id": revocation.user_id,
                "token_id": revocation.token_id,
                "issued_before_us": None if issued_before is None else epoch_us(issued_before),
                "expires_at_us": epoch_us(revocation.expires_at),
            }
        case Disconnect():
            fields = {
                "type": "disconnect",
                "user_id": message.user_id,
                "connection_id": message.connection_id,
                "reconnect": message.reconnect,
            }
        case ConfirmLeases(user_id):
            fields = {"type": "confirm_leases", "user_id": user_id}
    said = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


def parse(payload: bytes) -> ControlMessage:
    """What was said; raises ControlMessageError for anything that `encode` would not write."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ControlMessageError(f"it is longer than {MAX_MESSAGE_BYTES} bytes")
    try:
        said = strict_json.loads(payload)
    except ValueError:
        # Its message may quote the input.
        said = None
    if not isinstance(said, dict):
        raise ControlMessageError("it is no JSON object")
    fields = _Fields(said)
    try:
        match said.get("type"):
            case "revoked":
                return Revoked(fields.revocation())
            case "disconnect":
                return fields.disconnect()
            case "confirm_leases":
                return fields.confirm_leases()
            case _:
                raise ControlMessageError("its type is unknown")
    except OverflowError:
        raise ControlMessageError("a moment is outside the years 1 to 9999") from None
    except ValueError as error:
        raise ControlMessageError(str(error)) from None


class _Fields:
    """Of a message as it came."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def revocation(self) -> Revocation:
        issued_before_us = self._microseconds("issued_before_us")
        expires_at_us = self._microseconds("expires_at_us")
        if expires_at_us is None:
            raise ControlMessageError("expires_at_us is missing")
        return Revocation(
            user_id=self._id("user_id"),
            token_id=self._id("token_id"),
            issued_before=None if issued_before_us is None else moment_at(issued_before_us),
            expires_at=moment_at(expires_at_us),
        )

    def disconnect(self) -> Disconnect:
        reconnect = self._values.get("reconnect", False)
        if not isinstance(reconnect, bool):
            raise ControlMessageError("reconnect is neither true nor false")
        return Disconnect(
            user_id=self._id("user_id"),
            connection_id=self._id("connection_id"),
            reconnect=reconnect,
        )

    def confirm_leases(self) -> ConfirmLeases:
        user_id = self._id("user_id")
        if user_id is None:
            raise ControlMessageError("user_id is missing")
        return ConfirmLeases(user_id)

    def _id(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is not None and not is_bounded_id(value):
            raise ControlMessageError(f"{name} is no id")
        return value

    def _microseconds(self, name: str) -> int | None:
        value = self._values.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ControlMessageError(f"{name} is no whole number")
        return value


class ConnectionControl:
    """Speaks to all processes of the WebSocket service; `client` carries it.

    `service` is named in errors.
    """

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        service: str = "connection_control",
    ) -> None:
        self._client = client
        self._service = service
        self._channel = control_channel(channel_prefix)

    @property
    def channel(self) -> ChannelName:
        """Where it is said."""
        return self._channel

    async def disconnect(
        self,
        *,
        user_id: str | None = None,
        connection_id: str | None = None,
        reconnect: bool = False,
    ) -> None:
        """End connections as `Disconnect` says, at most once: no process is asked whether it heard.

        Raises HuleEduError (VALIDATION_ERROR) for what is no id, MISSING_REQUIRED_FIELD without
        any; and redis-py's exceptions.
        """
        operation = "disconnect"
        for field, value in (("user_id", user_id), ("connection_id", connection_id)):
            if value is not None:
                check_bounded_id(value, field=field, service=self._service, operation=operation)
        if user_id is None and connection_id is None:
            raise_missing_required_field(self._service, operation, "user_id", None)
        message = Disconnect(user_id=user_id, connection_id=connection_id, reconnect=reconnect)
        await self._client.publish(self._channel, encode(message))

    async def confirm_leases(self, user_id: str) -> None:
        """Ask for what `ConfirmLeases` says. Errors are those of `disconnect`."""
        check_bounded_id(
            user_id, field="user_id", service=self._service, operation="confirm_leases"
        )
        await self._client.publish(self._channel, encode(ConfirmLeases(user_id)))
