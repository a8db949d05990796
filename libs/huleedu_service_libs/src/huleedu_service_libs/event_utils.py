"""Facts read from events without knowing their models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from huleedu_service_libs import strict_json

__all__ = [
    "extract_correlation_id_from_event",
    "extract_user_id_from_event_data",
    "generate_deterministic_event_id",
]

_USER_ID_FIELDS = (
    "user_id",
    "created_by_user_id",
    "updated_by_user_id",
    "created_by_id",
    "updated_by_id",
    "owner_id",
    "author_id",
)


def generate_deterministic_event_id(raw: bytes) -> str:
    """SHA-256 (64 hex digits) of the envelope's `event_id` and `data`.

    Hashed is their canonical JSON, so the order of keys, whitespace and what else is in the
    envelope (a new timestamp or trace on redelivery) make no difference.

    Raises ValueError if `raw` is no JSON object or its `data` is missing or null.
    """
    envelope = _parse_envelope(raw)
    if envelope.get("data") is None:
        raise ValueError("event has no data")
    identity = {"event_id": envelope.get("event_id"), "data": envelope["data"]}
    try:
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"event has no canonical form: {error}") from error
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def extract_correlation_id_from_event(raw: bytes) -> str | None:
    """The envelope's `correlation_id`; None if it is absent or `raw` is no such envelope."""
    try:
        correlation_id = _parse_envelope(raw).get("correlation_id")
    except ValueError:
        return None
    return correlation_id if isinstance(correlation_id, str) and correlation_id else None


def extract_user_id_from_event_data(data: object) -> str | None:
    """Whom an event concerns: the first of the known fields that names somebody.

    `data` is a mapping or a model. The order is user_id, created_by_user_id, updated_by_user_id,
    created_by_id, updated_by_id, owner_id, author_id. An empty value, or one that is no string,
    UUID or integer, names nobody.
    """
    for field in _USER_ID_FIELDS:
        value = data.get(field) if isinstance(data, Mapping) else getattr(data, field, None)
        if isinstance(value, str | UUID | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def _parse_envelope(raw: bytes) -> dict[str, Any]:
    try:
        envelope = strict_json.loads(raw)
    except ValueError as error:
        raise ValueError(f"event is no JSON: {error}") from error
    if not isinstance(envelope, dict):
        raise ValueError("event is no JSON object")  # noqa: TRY004 - bad content, not a bad call
    return envelope
