"""The settings as the service will see them, where each comes from, and what is wrong with them.

pydantic-settings gives up at the first variable that is not JSON and does not tell where a value
came from, so its sources are asked field by field here.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import AliasChoices, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_jsonable_python
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from huleedu_service_libs.unknown_variables import report_unknown
from services.websocket_service.config import Settings

MASK = "********"
_PASSWORD_IN_AUTHORITY = re.compile(r"(?<=://)[^:/?#]*:(.*)@", re.DOTALL)
_PASSWORD_IN_QUERY = re.compile(r"[?&]\w*password=([^&#]*)", re.IGNORECASE)
_VALUE_IN_QUERY = re.compile(r"[?&](?:[^=&#]*=)?([^&#]*)")
_MAX_QUOTED_CHARS = 60
_PREFIX = "WEBSOCKET_"
# Kubernetes makes these up for a Service called websocket-service; the last one is for Compose.
_OTHERS = (
    *("WEBSOCKET_SERVICE_SERVICE_", "WEBSOCKET_SERVICE_PORT_"),
    "WEBSOCKET_SERVICE_PUBLISHED_PORT",
)
_LOG_FORMATS = ("", "json", "readable")
# Where pydantic speaks of its parser.
_EXPECTED = {
    "bool_parsing": "should be true or false",
    "float_parsing": "should be a number",
    "int_parsing": "should be a whole number",
}


class InvalidSettingsError(Exception):
    """The service can't run with these settings; `problems` has one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of `check-config`: `value` is JSON, secrets masked."""

    name: str
    value: Any
    source: str
    """default, environment or .env"""
    variable: str
    """The variable that gave the value, or would."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """All settings, and one sentence per problem; `settings` is None if some value is invalid.

    `notes` are sentences too, on what the service runs with all the same.
    """

    settings: Settings | None
    rows: list[Setting]
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Given:
    raw: Any
    source: str
    variable: str


class _Resolved(Settings):
    """Settings from values alone: the sources have been read already."""

    model_config = SettingsConfigDict(env_file=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings() -> Settings:
    """The settings from the environment and `.env`.

    Raises InvalidSettingsError if a value is invalid. Values that are valid but insecure or missing
    are for `Settings.problems()`.
    """
    settings, _, problems = _read()
    if settings is None:
        raise InvalidSettingsError(problems)
    return settings


def is_set(settings: Settings, name: str) -> bool:
    """Whether the user has chosen the value of this setting."""
    return name in settings.model_fields_set


def jwt_secret(settings: Settings) -> str | None:
    """The secret that the user has set; a blank one counts as none."""
    secret = settings.JWT_SECRET_KEY.get_secret_value() if settings.JWT_SECRET_KEY else ""
    return secret if secret.strip() else None


def require_usable(settings: Settings) -> list[str]:
    """The problems that the service can run with: all of them, outside of production.

    Raises InvalidSettingsError in production.
    """
    problems = settings.problems()
    if problems and settings.is_production:
        raise InvalidSettingsError(problems)
    return problems


def notes(settings: Settings) -> list[str]:
    """One sentence for each thing that is no problem here, and that somebody should know of."""
    found = []
    if not settings.is_production:
        found += [f"production would refuse this: {why}" for why in settings.insecurities()]
    # Read where logging begins, which knows of no .env.
    log_format = os.environ.get("LOG_FORMAT", "")
    if log_format.lower() not in _LOG_FORMATS:
        found.append(f"LOG_FORMAT is {_quoted(log_format)}: it is either json or readable")
    return found


def unknown_variables() -> list[str]:
    """One sentence for each variable that has our prefix and is no setting."""
    sources, _ = _sources()
    known = set(Settings.model_fields)
    for field in Settings.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            known |= {str(choice) for choice in field.validation_alias.choices}
    given = {variable.upper() for source in sources.values() for variable in source.env_vars}
    return report_unknown(given, known, prefix=_PREFIX, others=_OTHERS)


def masked_url(url: str) -> str:
    """The URL without its passwords, however carelessly they were put in.

    Of a web address no value in the query is shown: any of them may be a key.
    """
    # Found in the URL as it is: an @ in the one kind would end the other too early.
    found = [*_PASSWORD_IN_AUTHORITY.finditer(url), *_PASSWORD_IN_QUERY.finditer(url)]
    if url.lower().startswith(("http://", "https://")):
        found += _VALUE_IN_QUERY.finditer(url)
    shown = ""
    shown_to = 0
    for start, end in sorted(password.span(1) for password in found):
        if start >= shown_to:
            shown += url[shown_to:start] + MASK
        shown_to = max(shown_to, end)
    return shown + url[shown_to:]


def inspect_settings() -> Inspection:
    """Everything that `check-config` shows."""
    settings, given, problems = _read()
    rows = []
    for name, field in Settings.model_fields.items():
        origin = given.get(name)
        if settings is not None:
            value = getattr(settings, name)
        else:
            value = origin.raw if origin else field.get_default(call_default_factory=True)
        rows.append(
            Setting(
                name,
                _shown(field, value),
                origin.source if origin else "default",
                origin.variable if origin else name,
            )
        )
    if settings is not None:
        problems = settings.problems()
    return Inspection(
        settings, rows, problems + unknown_variables(), notes(settings) if settings else []
    )


def _sources() -> tuple[dict[str, EnvSettingsSource], list[str]]:
    """Those that can be read, by name, and why another one can't."""
    sources: dict[str, EnvSettingsSource] = {"environment": EnvSettingsSource(Settings)}
    problems = []
    try:
        sources[".env"] = DotEnvSettingsSource(Settings)
    except OSError as error:
        problems.append(f".env can't be read: {error.strerror}")
    except UnicodeDecodeError:
        problems.append(".env can't be read: it is not UTF-8")
    return sources, problems


def _read() -> tuple[Settings | None, dict[str, _Given], list[str]]:
    sources, problems = _sources()
    given: dict[str, _Given] = {}
    values: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        for source_name, source in sources.items():
            raw, variable, is_complex = source.get_field_value(field, name)
            if raw is None:
                continue
            given[name] = _Given(raw, source_name, variable)
            try:
                values[name] = source.prepare_field_value(name, field, raw, is_complex)
            except ValueError:
                examples = field.examples or [[]]
                problems.append(
                    f"{variable} is {_quoted(raw)}: it must be JSON, for example "
                    f"{json.dumps(examples[0])}"
                )
            break
    try:
        settings = _Resolved.model_validate(values)
    except ValidationError as error:
        problems += [_problem(detail, given) for detail in error.errors(include_url=False)]
        return None, given, problems
    return (None if problems else settings), given, problems


def _problem(detail: ErrorDetails, given: Mapping[str, _Given]) -> str:
    said = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if not detail["loc"]:
        # Of several settings together: it names them.
        return said
    name = str(detail["loc"][0])
    variable = given[name].variable if name in given else name
    expected = _EXPECTED.get(detail["type"], said)
    field = Settings.model_fields.get(name)
    if field is None or _is_secret(field):
        return f"{variable}: {expected}"
    given_value = _quoted(detail["input"])
    if detail["type"] == "value_error":
        return f"{variable} is {given_value}: {expected}"
    return f"{variable} is {given_value}: it {expected}"


def _quoted(value: object) -> str:
    text = masked_url(value if isinstance(value, str) else str(value))
    return repr(text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}…")


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _shown(field: FieldInfo, value: Any) -> Any:
    if value is None:
        return None
    if _is_secret(field):
        return MASK
    shown = to_jsonable_python(value)
    return masked_url(shown) if isinstance(shown, str) else shown
