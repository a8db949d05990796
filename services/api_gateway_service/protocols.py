"""The seams of the gateway; `di.py` names what stands behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from pydantic import JsonValue

from common_core.events.client_commands import ClientBatchPipelineRequestV1
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from services.api_gateway_service.status_mapping import PublicStatus


@dataclass(frozen=True, slots=True)
class RateLimitDecision:
    """Whether a request is one too many, and what to tell its sender."""

    allowed: bool
    limit: int
    """Requests in one window."""
    remaining: int
    """Those left in it after this one; 0 where it was refused."""
    reset_after_s: float
    """Until a request is allowed again that would not be now."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch is, as its owner may see it: `details` do not name the user."""

    status: PublicStatus
    details: Mapping[str, JsonValue]


class TokensProtocol(Protocol):
    """Turns a bearer token into what it proves."""

    async def verify(self, token: str, *, operation: str, correlation_id: UUID | None) -> JWTClaims:
        """Raises HuleEduError.

        AUTHENTICATION_ERROR is the client's fault; for want of a key it is ours:
        CONFIGURATION_ERROR or CONNECTION_ERROR.
        """
        ...


class RateLimitsProtocol(Protocol):
    """Counts requests over all processes of the gateway."""

    async def check(self, key: str) -> RateLimitDecision:
        """Count one more request of `key`. Never raises: without Redis everything is allowed."""
        ...


class PipelineCommandsProtocol(Protocol):
    """Where commands go."""

    async def send(self, command: ClientBatchPipelineRequestV1) -> None:
        """Return once the command is safe with Kafka; commands of one batch keep their order.

        Raises HuleEduError (KAFKA_PUBLISH_ERROR) within bounded time. The command may have got
        there all the same.
        """
        ...


class BatchStatusProtocol(Protocol):
    """Knows how far batches are."""

    async def status(self, batch_id: str, *, user_id: str, correlation_id: UUID) -> BatchStatus:
        """What `user_id` may know of the batch.

        Raises HuleEduError: RESOURCE_NOT_FOUND, AUTHORIZATION_ERROR for someone else's batch,
        EXTERNAL_SERVICE_ERROR, TIMEOUT, CIRCUIT_BREAKER_OPEN.
        """
        ...
