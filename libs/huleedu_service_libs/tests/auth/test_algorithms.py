"""Keys and algorithms: the configured pair verifies, no other combination does."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from huleedu_service_libs.auth import (
    JWTAlgorithm,
    JWTValidationSettings,
    TokenVerifier,
    decode_jwt,
)
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.testing.jwt_helpers import create_jwt
from huleedu_service_libs.testing.signing_keys import SigningKey
from libs.huleedu_service_libs.tests.auth.token_claims import (
    ACCEPTED,
    BAD_ALGORITHM,
    BAD_SIGNATURE,
    BAD_TOKEN,
    GARBAGE,
    good_claims,
    outcome,
)

SECRET = "a-secret-for-these-tests-0123456789"
SHARED = ["HS256", "HS384", "HS512"]
ASYMMETRIC = ["RS256", "PS256", "ES256", "EdDSA"]


@cache
def key_for(algorithm: str) -> SigningKey:
    return SigningKey.generate(algorithm)


def settings_for(algorithm: str, **changes: Any) -> JWTValidationSettings:
    if algorithm in SHARED:
        return JWTValidationSettings(
            JWT_ALGORITHM=algorithm, JWT_SECRET_KEY=SecretStr(SECRET), **changes
        )
    return JWTValidationSettings(
        **{"JWT_ALGORITHM": algorithm, "JWT_PUBLIC_KEY": key_for(algorithm).public_pem, **changes}
    )


def token_for(algorithm: str, **headers: Any) -> str:
    if algorithm in SHARED:
        return create_jwt(SECRET, good_claims(), algorithm, headers=headers)
    return key_for(algorithm).sign(good_claims(), headers=headers)


def verifier_for(algorithm: str, **changes: Any) -> TokenVerifier:
    return TokenVerifier(settings_for(algorithm, **changes), service="door")


def test_the_known_algorithms_are_these() -> None:
    """No algorithm can be configured that is not tested here."""
    assert get_args(JWTAlgorithm) == (*SHARED, *ASYMMETRIC)


@pytest.mark.parametrize("algorithm", [*SHARED, *ASYMMETRIC])
async def test_each_algorithm_verifies_its_own_tokens(algorithm: str) -> None:
    """A genuine token is accepted, by the verifier and by the plain function alike."""
    token = token_for(algorithm)
    assert await outcome(verifier_for(algorithm), token) == ACCEPTED
    claims = decode_jwt(token, settings_for(algorithm), service="door", operation="test")
    assert claims.subject == ACCEPTED


@pytest.mark.parametrize("algorithm", [*SHARED, *ASYMMETRIC])
@pytest.mark.parametrize("other", [*SHARED, *ASYMMETRIC, "none"])
async def test_no_algorithm_stands_in_for_another(algorithm: str, other: str) -> None:
    """A genuine token is refused where another algorithm is configured, whatever it says it is."""
    if other == algorithm:
        stranger = create_jwt("x" * 64, good_claims(), "HS256", headers={"alg": algorithm})
        assert await outcome(verifier_for(algorithm), stranger) == BAD_SIGNATURE
        return
    token = create_jwt("", good_claims(), "none") if other == "none" else token_for(other)
    assert await outcome(verifier_for(algorithm), token) == BAD_ALGORITHM
    header, payload, signature = token.split(".")
    relabelled = json.dumps({"alg": algorithm, "typ": "JWT"}).encode()
    header = base64.urlsafe_b64encode(relabelled).rstrip(b"=").decode()
    assert await outcome(verifier_for(algorithm), f"{header}.{payload}.{signature}") == (
        BAD_SIGNATURE
    )


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
@pytest.mark.parametrize("hmac", SHARED)
async def test_a_public_key_is_no_shared_secret(algorithm: str, hmac: str) -> None:
    """Who signs with the public key as an HMAC secret gets in nowhere."""
    public_pem = key_for(algorithm).public_pem
    forged = create_jwt(public_pem, good_claims(), hmac)
    assert await outcome(verifier_for(algorithm), forged) == BAD_ALGORITHM
    posing = create_jwt(public_pem, good_claims(), hmac, headers={"alg": algorithm})
    assert await outcome(verifier_for(algorithm), posing) == BAD_SIGNATURE
    confused = JWTValidationSettings(JWT_ALGORITHM=hmac, JWT_SECRET_KEY=SecretStr(public_pem))
    verifier = TokenVerifier(confused, service="door")
    assert await outcome(verifier, forged) == "CONFIGURATION_ERROR"
    assert verifier.problem == f"JWT_SECRET_KEY is not a key for {hmac}"


def _ed448_pem() -> str:
    public = ed448.Ed448PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("algorithm", "pem"),
    [
        ("RS256", key_for("ES256").public_pem),
        ("RS256", SigningKey.generate("RS256", rsa_bits=1024).public_pem),
        ("PS256", key_for("EdDSA").public_pem),
        ("ES256", key_for("RS256").public_pem),
        ("ES256", SigningKey.generate("ES384").public_pem),
        ("ES256", key_for("ES256").private_pem),
        ("EdDSA", key_for("ES256").public_pem),
        ("EdDSA", _ed448_pem()),
        ("EdDSA", "no key at all"),
    ],
)
async def test_a_key_of_another_kind_verifies_nothing(algorithm: str, pem: str) -> None:
    """A key that does not fit the algorithm is a fault of the configuration, and says so."""
    settings = settings_for(algorithm, JWT_PUBLIC_KEY=pem)
    verifier = TokenVerifier(settings, service="door")
    problem = verifier.problem or ""
    assert problem.startswith("JWT_PUBLIC_KEY is ")
    assert settings.key_problem == problem
    assert pem not in problem
    assert await outcome(verifier, token_for(algorithm)) == "CONFIGURATION_ERROR"
    assert await outcome(verifier, GARBAGE) == "CONFIGURATION_ERROR"
    assert verifier.statistics().keys == 0


@pytest.mark.parametrize("algorithm", ["HS256", "ES256"])
@pytest.mark.parametrize(
    "key_id",
    ["../../../../dev/null", "' UNION SELECT 'x' --", "|/bin/true", "", "\u0000", "http://evil/"],
)
async def test_a_key_id_is_only_a_name(algorithm: str, key_id: str) -> None:
    """What a token calls its key is neither opened nor run: the configured key decides."""
    assert await outcome(verifier_for(algorithm), token_for(algorithm, kid=key_id)) == ACCEPTED
    empty = create_jwt("", good_claims(), "HS256", headers={"kid": key_id, "alg": algorithm})
    assert await outcome(verifier_for(algorithm), empty) == BAD_SIGNATURE


@pytest.mark.parametrize("key_id", [7, None, True, ["a"], {"a": 1}, "k" * 257])
async def test_a_key_id_that_is_no_name_is_refused(key_id: object) -> None:
    """A key id that is no string, or as long as no key id is, makes the token invalid."""
    assert await outcome(verifier_for("ES256"), token_for("ES256", kid=key_id)) == BAD_TOKEN


async def test_keys_that_come_with_the_token_are_ignored() -> None:
    """A forger's own key in the header, or where to fetch it, verifies nothing."""
    forger = SigningKey.generate("ES256")
    brought = {
        "jwk": dict(forger.public_jwk),
        "jku": "http://127.0.0.1:1/keys.json",
        "x5u": "http://127.0.0.1:1/chain.pem",
        "x5c": [base64.b64encode(b"certificate").decode()],
    }
    forged = forger.sign(good_claims(), headers=brought)
    assert await outcome(verifier_for("ES256"), forged) == BAD_SIGNATURE
    assert await outcome(verifier_for("ES256"), token_for("ES256", **brought)) == ACCEPTED


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
@pytest.mark.parametrize("signature", [b"", b"\0", b"\0" * 64, b"\xff" * 256, b"x" * 5000])
async def test_any_bytes_may_stand_for_a_signature(algorithm: str, signature: bytes) -> None:
    """A signature of whatever length is wrong, and nothing worse."""
    text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    unsigned = token_for(algorithm).rpartition(".")[0]
    assert await outcome(verifier_for(algorithm), f"{unsigned}.{text}") == BAD_SIGNATURE


@pytest.mark.parametrize("algorithm", ["HS256", *ASYMMETRIC])
async def test_a_refused_token_stays_refused(algorithm: str) -> None:
    """However often it comes, a forged token is refused, and no genuine one is taken for it."""
    verifier = verifier_for(algorithm)
    genuine = token_for(algorithm)
    unsigned, _, signature = genuine.rpartition(".")
    forged = f"{unsigned}.{'AAAA' if not signature.startswith('AAAA') else 'BBBB'}{signature[4:]}"
    for _ in range(3):
        assert await outcome(verifier, forged) == BAD_SIGNATURE
        assert await outcome(verifier, genuine) == ACCEPTED


async def test_a_flood_of_forged_tokens_is_forgotten() -> None:
    """Ten thousand different ones leave no more behind than a few thousand do."""
    verifier = verifier_for("RS256")
    unsigned = token_for("RS256").rpartition(".")[0]
    for number in range(10_000):
        text = base64.urlsafe_b64encode(number.to_bytes(3, "big")).decode()
        assert await outcome(verifier, f"{unsigned}.{text}") == BAD_SIGNATURE
    assert await outcome(verifier, token_for("RS256")) == ACCEPTED


async def test_padded_segments_are_no_token() -> None:
    """A token has one text: with base64 padding it is another one, which nobody has signed."""
    header, payload, signature = token_for("HS256").split(".")
    for segments in ([f"{header}==", payload], [header, f"{payload}="]):
        signed = ".".join(segments)
        assert await outcome(verifier_for("HS256"), f"{signed}.{signature}") == BAD_TOKEN


async def test_the_leeway_holds_for_all_times() -> None:
    """Clocks may differ by the configured seconds, and no more."""
    strict, lenient = verifier_for("HS256"), verifier_for("HS256", JWT_LEEWAY_SECONDS=60)
    now = good_claims()["exp"] - 600
    for changes, reason in (
        ({"exp": now - 30}, "token_expired"),
        ({"nbf": now + 30}, "invalid_token"),
        ({"iat": now + 30}, "invalid_token"),
    ):
        token = create_jwt(SECRET, good_claims(**changes))
        assert await outcome(lenient, token) == ACCEPTED
        assert await outcome(strict, token) == f"AUTHENTICATION_ERROR {reason}"
        (name,) = changes
        too_far = create_jwt(
            SECRET, good_claims(**{name: changes[name] + (-90 if name == "exp" else 90)})
        )
        assert await outcome(lenient, too_far) == f"AUTHENTICATION_ERROR {reason}"


async def test_an_error_names_service_and_operation() -> None:
    """A refusal carries what the caller has given, and no stack trace."""
    with pytest.raises(HuleEduError) as caught:
        await verifier_for("HS256").verify("garbage", operation="upgrade")
    detail = caught.value.error_detail
    assert (detail.service, detail.operation, detail.stack_trace) == ("door", "upgrade", None)
