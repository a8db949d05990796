"""The settings, for commands: what is wrong with them is an expected failure."""

import contextlib
from collections.abc import Iterator

from services.websocket_service import effective_settings
from services.websocket_service.cli.output import CliProblemsError
from services.websocket_service.config import Settings
from services.websocket_service.effective_settings import InvalidSettingsError


def load_settings() -> Settings:
    """The settings from the environment and `.env`.

    Raises CliProblemsError, one line per variable, if a value is invalid.
    """
    with _as_cli_error():
        return effective_settings.load_settings()


def require_usable(settings: Settings) -> None:
    """Raises CliProblemsError, one line per problem, where the service must not run with them.

    Where it can run nevertheless, it warns itself.
    """
    with _as_cli_error():
        effective_settings.require_usable(settings)


@contextlib.contextmanager
def _as_cli_error() -> Iterator[None]:
    try:
        yield
    except InvalidSettingsError as error:
        raise CliProblemsError(error.problems) from None
