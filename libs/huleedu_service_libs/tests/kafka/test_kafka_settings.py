"""Where Kafka is, from the environment."""

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from huleedu_service_libs.kafka_settings import KafkaConnection, KafkaSettings

PASSWORD = "opensesame-71"
ALL_SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
    "KAFKA_SASL_USERNAME": "bridge",
    "KAFKA_SASL_PASSWORD": PASSWORD,
}


class PrefixedSettings(KafkaSettings):
    model_config = SettingsConfigDict(env_prefix="GATEWAY_")


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> KafkaSettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return KafkaSettings()


@pytest.mark.parametrize("variables", [{}, {"KAFKA_BOOTSTRAP_SERVERS": ""}])
def test_off(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Without an address, or with an empty one, there is no Kafka."""
    assert settings(monkeypatch, **variables).kafka_connection is None


def test_plaintext(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address is all that an open Kafka needs."""
    connection = settings(monkeypatch, KAFKA_BOOTSTRAP_SERVERS="k1:9092,[::1]:9093")
    assert connection.kafka_connection == KafkaConnection(bootstrap_servers="k1:9092,[::1]:9093")
    assert connection.kafka_connection.client_options() == {
        "bootstrap_servers": "k1:9092,[::1]:9093",
        "security_protocol": "PLAINTEXT",
    }


def test_sasl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name and password reach the client, and no representation shows the password."""
    configured = settings(monkeypatch, KAFKA_BOOTSTRAP_SERVERS="k:9092", **ALL_SASL)
    assert configured.kafka_connection is not None
    options = configured.kafka_connection.client_options()
    assert options["sasl_mechanism"] == "SCRAM-SHA-256"
    assert options["sasl_plain_username"] == "bridge"
    assert options["sasl_plain_password"] == PASSWORD
    assert PASSWORD not in repr(configured) + repr(configured.kafka_connection)


def test_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The brokers' certificates are verified against the CA file, host name included."""
    certificate = tmp_path / "ca.pem"
    command = f"openssl req -x509 -nodes -newkey rsa:2048 -subj /CN=test -out {certificate}"
    subprocess.run(
        [*command.split(), "-keyout", str(tmp_path / "key.pem")], check=True, capture_output=True
    )
    configured = settings(
        monkeypatch,
        KAFKA_BOOTSTRAP_SERVERS="k:9092",
        KAFKA_SECURITY_PROTOCOL="SSL",
        KAFKA_SSL_CAFILE=str(certificate),
    )
    assert configured.kafka_connection is not None
    context = configured.kafka_connection.client_options()["ssl_context"]
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's own prefix applies to these variables too."""
    monkeypatch.setenv("GATEWAY_KAFKA_BOOTSTRAP_SERVERS", "k:9092")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "elsewhere:9092")
    assert PrefixedSettings().KAFKA_BOOTSTRAP_SERVERS == "k:9092"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"KAFKA_BOOTSTRAP_SERVERS": "kafka"}, "KAFKA_BOOTSTRAP_SERVERS has 'kafka'"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "k:9092,"}, "KAFKA_BOOTSTRAP_SERVERS has ''"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "k:0"}, "expected host:port"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "k:65536"}, "expected host:port"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "kafka://k:9092"}, "expected host:port"),
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "KAFKA_SECURITY_PROTOCOL is 'TLS'"),
        (ALL_SASL | {"KAFKA_SASL_MECHANISM": "GSSAPI"}, "KAFKA_SASL_MECHANISM is 'GSSAPI'"),
        (ALL_SASL | {"KAFKA_SASL_MECHANISM": ""}, "KAFKA_SASL_MECHANISM is None"),
        (ALL_SASL | {"KAFKA_SASL_USERNAME": ""}, "KAFKA_SASL_USERNAME is missing"),
        (ALL_SASL | {"KAFKA_SASL_PASSWORD": ""}, "KAFKA_SASL_PASSWORD is missing"),
        (ALL_SASL | {"KAFKA_SECURITY_PROTOCOL": "SSL"}, "sends no credentials"),
        ({"KAFKA_SSL_CAFILE": "ca.pem"}, "encrypts nothing"),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "/nowhere/ca.pem"},
            "KAFKA_SSL_CAFILE '/nowhere/ca.pem' can't be used: .*No such file",
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": __file__},
            "KAFKA_SSL_CAFILE .* can't be used",
        ),
    ],
)
def test_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    """What can't work is refused at once, with the variable's name and without the password."""
    with pytest.raises(ValidationError, match=message) as refusal:
        settings(monkeypatch, **{"KAFKA_BOOTSTRAP_SERVERS": "k:9092", **variables})
    assert PASSWORD not in str(refusal.value)
