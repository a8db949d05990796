"""`hypercorn services.websocket_service.main:app`."""

import sys

from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.websocket_service.app import create_app
from services.websocket_service.config import Settings, describe_invalid


def _settings() -> Settings:
    try:
        settings = Settings()
    except ValidationError as error:
        sys.exit("\n".join(describe_invalid(error)))
    except SettingsError as error:
        sys.exit(f"{error}: it must be JSON")
    problems = settings.problems()
    if problems and settings.is_production:
        sys.exit("\n".join(problems))
    return settings


app = create_app(_settings())
