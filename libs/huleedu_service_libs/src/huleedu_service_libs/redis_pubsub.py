"""Publishing to users, and subscribing, over a Redis client."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn

from pydantic_core import PydanticSerializationError, to_jsonable_python

from huleedu_service_libs.error_handling import raise_validation_error
from huleedu_service_libs.observability import inject_trace_context
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_channels import DEFAULT_CHANNEL_PREFIX, user_channel


class RedisPubSub:
    """Names channels and encodes notifications; `client` carries them."""

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        client_id: str,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
    ) -> None:
        self._client = client
        self._client_id = client_id
        self._channel_prefix = channel_prefix

    async def publish(self, channel: str, message: str | bytes) -> int:
        """How many subscribers Redis handed the message to."""
        return await self._client.publish(channel, message)

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Enter once Redis has acknowledged; iterate over payloads as they were published."""
        return self._client.subscribe(channel)

    def get_user_channel(self, user_id: str) -> str:
        """The channel that carries one user's notifications."""
        return user_channel(user_id, self._channel_prefix)

    async def publish_user_notification(
        self, user_id: str, event_type: str, data: Mapping[str, Any]
    ) -> int:
        """Publish `{"event", "data"}` to the user's channel; how many processes received it.

        Inside a recording span the object also has `metadata` with the W3C trace context.
        Values that pydantic can serialise (UUID, datetime, enum, model) may stand in `data`.
        Raises HuleEduError (VALIDATION_ERROR) for anything that is not JSON and for a user id
        that names no channel, before anything is sent.
        """
        message = encode_notification(event_type, data, service=self._client_id)
        try:
            channel = self.get_user_channel(user_id)
        except ValueError as error:
            _refuse(self._client_id, "user_id", str(error))
        return await self.publish(channel, message)


def encode_notification(event_type: str, data: Mapping[str, Any], *, service: str) -> bytes:
    """The published object as compact UTF-8 JSON; `service` names the caller in errors."""
    if not isinstance(data, Mapping):
        _refuse(service, "data", f"data is {type(data).__name__}, expected an object")
    notification: dict[str, Any] = {"event": event_type, "data": dict(data)}
    metadata: dict[str, str] = {}
    inject_trace_context(metadata)
    if metadata:
        notification["metadata"] = metadata
    try:
        return json.dumps(
            notification,
            allow_nan=False,
            default=to_jsonable_python,
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
    except (TypeError, ValueError, RecursionError, PydanticSerializationError) as error:
        _refuse(service, "data", f"data can't be written as JSON: {error}")


def _refuse(service: str, field: str, message: str) -> NoReturn:
    raise_validation_error(service, "publish_user_notification", field, message, None)
