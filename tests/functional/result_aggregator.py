"""The service that knows how far batches are, as far as the gateway can tell."""

import json
from typing import Any

from huleedu_service_libs.testing.stand_in_server import StandInServer


class ResultAggregator(StandInServer):
    """Knows one batch, whatever it is asked for; `batch()` says which."""

    def __init__(self) -> None:
        super().__init__()
        self.batch()

    def batch(self, overall_status: str = "processing_pipelines", **members: Any) -> None:
        """Answer with this batch, of teacher-1 where nothing else is said."""
        body = {"user_id": "teacher-1", "overall_status": overall_status, **members}
        self.answer(json.dumps(body).encode())

    @property
    def last_target(self) -> str:
        """Path and query of the last request, as they came."""
        return self.last_request.split(b" ")[1].decode()

    @property
    def last_headers(self) -> dict[str, str]:
        """Of the last request, by lower-case name."""
        lines = self.last_request.decode().strip().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
