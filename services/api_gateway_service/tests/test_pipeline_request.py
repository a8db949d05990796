"""The body of a command."""

import pytest
from pydantic import TypeAdapter, ValidationError

from common_core.events.client_commands import ClientBatchPipelineRequestV1
from services.api_gateway_service.batch_ids import BatchId
from services.api_gateway_service.routers.pipeline_routes import PipelineRequest

_BATCH_ID: TypeAdapter[str] = TypeAdapter(BatchId)


def test_clients_fill_in_what_the_gateway_does_not() -> None:
    """A field that the command gets one day is missing here until somebody decides whose it is."""
    ours = {"client_correlation_id", "user_id"}
    assert PipelineRequest.model_fields.keys() == (
        ClientBatchPipelineRequestV1.model_fields.keys() - ours
    )
    for name, field in PipelineRequest.model_fields.items():
        assert field.default == ClientBatchPipelineRequestV1.model_fields[name].default


@pytest.mark.parametrize("value", ["true", "yes", 1, 0, "", None, []])
def test_a_retry_is_true_or_false(value: object) -> None:
    """What only looks like a boolean is refused, as the document says."""
    with pytest.raises(ValidationError):
        PipelineRequest.model_validate(
            {"batch_id": "b", "requested_pipeline": "nlp", "is_retry": value}
        )


@pytest.mark.parametrize("batch_id", ["b", "7", "ä", "🦊", "a b", "...", "x" * 128, "a.b:c@d"])
def test_a_batch_id_has_printable_characters(batch_id: str) -> None:
    """In any alphabet."""
    assert _BATCH_ID.validate_python(batch_id) == batch_id


@pytest.mark.parametrize(
    "batch_id",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "\n",
        "a\x00",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202e",
        "a\ufffd",
        "x" * 129,
    ],
)
def test_nothing_else_is_a_batch_id(batch_id: str) -> None:
    """It becomes part of URLs, keys and log lines, and means nothing special in any of them."""
    with pytest.raises(ValidationError):
        _BATCH_ID.validate_python(batch_id)
