"""How services say how much is kept."""

import dataclasses

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from huleedu_service_libs import notification_settings
from huleedu_service_libs.notification_settings import HistoryLimits, NotificationSettings

VARIABLES = {
    "NOTIFICATION_HISTORY_SIZE": "size",
    "NOTIFICATION_HISTORY_TTL": "ttl_s",
    "NOTIFICATION_ID_RETENTION": "id_retention_s",
    "NOTIFICATION_IDEMPOTENCY_TTL": "idempotency_ttl_s",
    "NOTIFICATION_MAX_BYTES": "max_payload_bytes",
}


class ServiceSettings(NotificationSettings):
    model_config = SettingsConfigDict(env_prefix="SERVICE_")

    PORT: int = 80


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_defaults() -> None:
    """Without a setting, 200 notifications of 64 KiB are kept for a day, their ids for a month."""
    assert NotificationSettings().history_limits == HistoryLimits()
    assert HistoryLimits() == HistoryLimits(
        size=200,
        ttl_s=86_400,
        id_retention_s=2_592_000,
        idempotency_ttl_s=86_400,
        max_payload_bytes=65_536,
    )


def test_each_variable_sets_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable is one limit of the history."""
    values = {name: 100_000 + n for n, name in enumerate(VARIABLES)}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    limits = dataclasses.asdict(NotificationSettings().history_limits)
    assert limits == {VARIABLES[name]: value for name, value in values.items()}


def test_a_service_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's own prefix does not apply: all publishers of one Redis keep the same."""
    monkeypatch.setenv("NOTIFICATION_HISTORY_SIZE", "7")
    monkeypatch.setenv("SERVICE_NOTIFICATION_HISTORY_SIZE", "8")
    monkeypatch.setenv("SERVICE_PORT", "81")
    settings = ServiceSettings()
    assert (settings.history_limits.size, settings.PORT) == (7, 81)


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable leaves the default."""
    monkeypatch.setenv("NOTIFICATION_HISTORY_SIZE", "")
    assert NotificationSettings().history_limits == HistoryLimits()


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
@pytest.mark.parametrize("name", VARIABLES)
def test_what_is_no_limit(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value that is no positive number is refused, and the variable is named."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name):
        NotificationSettings()


def test_ids_outlive_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is forgotten before its history is refused, and both variables are named."""
    monkeypatch.setenv("NOTIFICATION_HISTORY_TTL", "100")
    monkeypatch.setenv("NOTIFICATION_ID_RETENTION", "99")
    with pytest.raises(ValidationError, match=r"NOTIFICATION_ID_RETENTION .*HISTORY_TTL"):
        NotificationSettings()
    monkeypatch.setenv("NOTIFICATION_ID_RETENTION", "100")
    assert NotificationSettings().history_limits.id_retention_s == 100


@pytest.mark.parametrize("field", VARIABLES.values())
def test_limits_are_positive(field: str) -> None:
    """Limits made in code are held to the same."""
    with pytest.raises(ValueError, match=r"positive|id_retention_s"):
        HistoryLimits(**{field: 0})


def test_retention_made_in_code() -> None:
    """So is the retention of ids."""
    with pytest.raises(ValueError, match="id_retention_s must be at least ttl_s"):
        HistoryLimits(ttl_s=100, id_retention_s=99)


def test_public_names() -> None:
    """The module offers the limits and the settings that they come from."""
    assert set(notification_settings.__all__) == {"HistoryLimits", "NotificationSettings"}
