"""`hypercorn services.api_gateway_service.main:app`."""

import sys

from services.api_gateway_service.app import create_app
from services.api_gateway_service.config import InvalidSettingsError, Settings, load_settings


def _settings() -> Settings:
    try:
        settings, problems = load_settings()
    except InvalidSettingsError as error:
        sys.exit("\n".join(f"Error: {problem}" for problem in error.problems))
    sys.stderr.writelines(f"Warning: {problem}\n" for problem in problems)
    return settings


app = create_app(_settings())
