from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jwt
import pytest
from pydantic import SecretStr

from huleedu_service_libs.auth import JWTClaims, JWTValidationSettings, decode_jwt
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.testing.jwt_helpers import build_jwt_headers, create_jwt
from huleedu_service_libs.testing.signing_keys import SigningKey, key_set

SETTINGS = JWTValidationSettings(JWT_ALGORITHM="HS512", JWT_SECRET_KEY=SecretStr("test"))


def decoded(headers: dict[str, str]) -> JWTClaims:
    scheme, _, token = headers["Authorization"].partition(" ")
    assert scheme == "Bearer"
    return decode_jwt(token, SETTINGS, service="tests", operation="decode")


def test_built_headers_open_the_door() -> None:
    """A request with the built headers is accepted under the same settings."""
    headers = build_jwt_headers(SETTINGS, subject="teacher-1", roles=["teacher"], org_id="school-1")
    claims = decoded(headers)
    assert claims.subject == "teacher-1"
    assert claims.raw["roles"] == ["teacher"]
    assert claims.raw["org_id"] == "school-1"
    assert set(headers) == {"Authorization"}


def test_correlation_id_travels_in_its_header() -> None:
    """A given correlation id is sent along."""
    correlation_id = uuid4()
    headers = build_jwt_headers(SETTINGS, correlation_id=correlation_id)
    assert headers["X-Correlation-ID"] == str(correlation_id)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"expires_in": timedelta(seconds=-1)}, "token_expired"),
        ({"omit_claims": ["exp"]}, "missing_exp"),
        ({"omit_claims": ["sub", "iat"]}, "missing_subject"),
        ({"extra_claims": {"aud": "elsewhere"}}, "invalid_audience"),
        ({"extra_claims": {"iss": 7}}, "invalid_issuer"),
    ],
)
def test_headers_can_be_wrong_on_purpose(options: dict[str, Any], reason: str) -> None:
    """A test of refusals gets exactly the token it asks for."""
    with pytest.raises(HuleEduError) as caught:
        decoded(build_jwt_headers(SETTINGS, **options))
    assert caught.value.error_detail.details["reason"] == reason


def test_verification_key_of_an_asymmetric_algorithm_cannot_sign() -> None:
    """Asking for headers where the service only has a public key fails with a clear message."""
    settings = JWTValidationSettings(JWT_ALGORITHM="ES256")
    with pytest.raises(ValueError, match="ES256"):
        build_jwt_headers(settings)


def test_claims_are_signed_as_they_are() -> None:
    """Claims of wrong types, which JWT libraries refuse to sign, are signed as they are."""
    expires = datetime(2100, 1, 1, tzinfo=UTC)
    token = create_jwt("k" * 32, {"iss": 7, "sub": None, "exp": expires})
    claims = jwt.decode(token, "k" * 32, algorithms=["HS256"], options={"verify_sub": False})
    assert claims == {"iss": 7, "sub": None, "exp": int(expires.timestamp())}


def test_values_that_json_cannot_hold_are_refused() -> None:
    """A claim that can't be written as JSON is an error in the test, not a strange token."""
    with pytest.raises(TypeError, match="object"):
        create_jwt("k", {"sub": object()})


def test_headers_are_put_in_as_they_are() -> None:
    """A token can be given a key id, or made to lie about how it was signed."""
    token = create_jwt("k" * 32, {"sub": "a"}, headers={"kid": "key-1", "alg": "RS256"})
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "typ": "JWT", "kid": "key-1"}


def test_any_bytes_can_be_signed() -> None:
    """Whoever holds the key can sign what is no claim set."""
    token = create_jwt("k" * 32, b"[1]")
    assert jwt.PyJWS().decode(token, "k" * 32, algorithms=["HS256"]) == b"[1]"


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "EdDSA"])
def test_signing_keys_are_what_they_publish(algorithm: str) -> None:
    """A token of a generated key verifies with its PEM and with its JWK, in another's library."""
    key = SigningKey.generate(algorithm, "key-1")
    token = key.sign({"sub": "a"})
    assert jwt.get_unverified_header(token)["kid"] == "key-1"
    assert jwt.decode(token, key.public_pem, algorithms=[algorithm]) == {"sub": "a"}
    jwk = jwt.PyJWKSet.from_json(key_set(key).decode())["key-1"]
    assert jwt.decode(token, jwk.key, algorithms=[algorithm]) == {"sub": "a"}
