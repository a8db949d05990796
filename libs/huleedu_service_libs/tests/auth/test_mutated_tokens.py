"""Genuine tokens, changed in every way that comes to a fuzzer's mind."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from huleedu_service_libs.auth import (
    JWTClaims,
    JWTValidationSettings,
    TokenVerifier,
    decode_jwt,
)
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.testing.jwt_helpers import create_jwt
from huleedu_service_libs.testing.signing_keys import SigningKey
from libs.huleedu_service_libs.tests.auth.token_claims import good_claims

SECRET = "a-secret-for-these-tests-0123456789"
KEYS = {algorithm: SigningKey.generate(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")}
SETTINGS = {
    algorithm: JWTValidationSettings(JWT_ALGORITHM=algorithm, JWT_PUBLIC_KEY=key.public_pem)
    for algorithm, key in KEYS.items()
} | {"HS256": JWTValidationSettings(JWT_SECRET_KEY=SecretStr(SECRET))}
GENUINE = {algorithm: key.sign(good_claims()) for algorithm, key in KEYS.items()} | {
    "HS256": create_jwt(SECRET, good_claims())
}
# The same for all examples, so that what it remembers of one could harm the next.
VERIFIERS = {
    algorithm: TokenVerifier(accepting, service="door") for algorithm, accepting in SETTINGS.items()
}
algorithms = st.sampled_from(list(SETTINGS))


def assert_only_genuine(algorithm: str, token: str) -> None:
    verdicts = [_verified(algorithm, token), _decoded(algorithm, token)]
    for verdict in verdicts:
        if token == GENUINE[algorithm]:
            assert isinstance(verdict, JWTClaims)
            continue
        assert isinstance(verdict, HuleEduError)
        assert verdict.error_code == "AUTHENTICATION_ERROR"
        assert verdict.__cause__ is None
        assert verdict.__context__ is None
        seen = f"{verdict} {verdict!r} {verdict.args!r} {verdict.to_dict()!r}"
        assert not [part for part in token.split(".") if len(part) >= 16 and part in seen]
    assert len({repr(verdict.error_detail.details) for verdict in _errors(verdicts)}) <= 1


def _errors(verdicts: list[JWTClaims | HuleEduError]) -> list[HuleEduError]:
    return [verdict for verdict in verdicts if isinstance(verdict, HuleEduError)]


def _verified(algorithm: str, token: str) -> JWTClaims | HuleEduError:
    try:
        return asyncio.run(VERIFIERS[algorithm].verify(token))
    except HuleEduError as error:
        return error


def _decoded(algorithm: str, token: str) -> JWTClaims | HuleEduError:
    try:
        return decode_jwt(token, SETTINGS[algorithm], service="door", operation="test")
    except HuleEduError as error:
        return error


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, str]:
    """An algorithm, and its genuine token with some stretches replaced by other text."""
    algorithm = draw(algorithms)
    token = GENUINE[algorithm]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(token)))
        end = draw(st.integers(start, min(len(token), start + 8)))
        replacement = draw(
            st.text(st.sampled_from("AZaz09-_.=+/ \n\0é"), max_size=4) | st.just(token[start:end])
        )
        token = token[:start] + replacement + token[end:]
    return algorithm, token


@settings(deadline=None, max_examples=200)
@given(mutated())
def test_a_token_with_one_character_changed_is_refused(example: tuple[str, str]) -> None:
    """Only the text that was issued is accepted, and no error quotes what was sent."""
    assert_only_genuine(*example)


@settings(deadline=None, max_examples=100)
@given(algorithms, st.lists(st.tuples(algorithms, st.integers(0, 2)), max_size=5))
def test_segments_of_several_tokens_make_no_token(
    algorithm: str, segments: list[tuple[str, int]]
) -> None:
    """Header, claims and signature count together or not at all."""
    mixed = ".".join(GENUINE[source].split(".")[segment] for source, segment in segments)
    assert_only_genuine(algorithm, mixed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
header_names = st.sampled_from(
    ["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5u", "x5c", "x5t", "zip", "enc"]
)
header_values = json_values | st.sampled_from(
    [*SETTINGS, "none", "HS512", "../../../dev/null", "' OR 1=1 --", "http://127.0.0.1:1/"]
)


@settings(deadline=None, max_examples=150)
@given(algorithms, st.dictionaries(header_names, header_values, min_size=1))
def test_no_header_makes_up_for_a_signature(algorithm: str, header: dict[str, Any]) -> None:
    """Whatever is put into the header of a genuine token, it is not what was signed."""
    _, payload, signature = GENUINE[algorithm].split(".")
    encoded = json.dumps({"alg": algorithm, **header}).encode()
    changed = base64.urlsafe_b64encode(encoded).rstrip(b"=").decode()
    assert_only_genuine(algorithm, f"{changed}.{payload}.{signature}")
