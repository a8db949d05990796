from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MAX_BATCH_ID_CHARS: Final = 128


# What servers put in place of bytes that are no UTF-8: many ids would become one.
_NOT_IN_IDS: Final = ("/", "\\", "\N{REPLACEMENT CHARACTER}")


def _fit_for_a_path(batch_id: str) -> str:
    # It becomes part of another service's URL, a Kafka key and log lines.
    if (
        batch_id in {".", ".."}
        or not batch_id.isprintable()
        or any(character in batch_id for character in _NOT_IN_IDS)
    ):
        raise PydanticCustomError(
            "batch_id", "A batch id has printable characters, and no slash among them"
        )
    return batch_id


BatchId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_BATCH_ID_CHARS,
        description="Printable characters, without slashes",
        examples=["batch-7"],
    ),
    AfterValidator(_fit_for_a_path),
]
"""A batch as clients name it: 1 to 128 characters."""
