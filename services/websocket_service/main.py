"""`hypercorn services.websocket_service.main:app`."""

import multiprocessing
import sys

from services.websocket_service.app import create_app
from services.websocket_service.config import Settings
from services.websocket_service.effective_settings import (
    InvalidSettingsError,
    load_settings,
    require_usable,
)


def _settings() -> Settings:
    try:
        settings = load_settings()
        warnings = require_usable(settings)
    except InvalidSettingsError as error:
        sys.exit("\n".join(f"Error: {problem}" for problem in error.problems))
    if _speaks_for_all():
        sys.stderr.writelines(f"Warning: {warning}\n" for warning in warnings)
    return settings


def _speaks_for_all() -> bool:
    """Each worker process imports this module: the first one warns, or the only process."""
    return (
        multiprocessing.parent_process() is None
        or multiprocessing.current_process().name == "SpawnProcess-1"
    )


app = create_app(_settings())
