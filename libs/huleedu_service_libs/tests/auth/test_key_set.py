"""Key sets as issuers publish them, and as nobody should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huleedu_service_libs.auth.key_set import (
    MAX_KEYS,
    KeySet,
    UnusableKeySetError,
    parse_key_set,
)
from huleedu_service_libs.testing.signing_keys import SigningKey, key_set

KEYS = {
    algorithm: SigningKey.generate(algorithm, "key-1")
    for algorithm in ("RS256", "PS256", "ES256", "EdDSA")
}
JWK = KEYS["ES256"].public_jwk


def without(name: str) -> dict[str, Any]:
    return {member: value for member, value in JWK.items() if member != name}


@pytest.mark.parametrize("algorithm", list(KEYS))
def test_each_algorithm_finds_its_own_keys(algorithm: str) -> None:
    """In a set for several algorithms each service takes the keys that are for its own."""
    keys = parse_key_set(key_set(*KEYS.values()), algorithm)
    assert len(keys) == 1
    assert len(keys.candidates("key-1")) == 1
    assert keys.candidates("key-2") == ()


@pytest.mark.parametrize(
    "member",
    [
        without("use"),
        without("alg"),
        {**without("use"), "key_ops": ["verify"]},
        {**JWK, "x5c": ["no certificate"], "x5u": "http://127.0.0.1:1/", "anything": [1]},
    ],
)
def test_what_is_optional_may_be_missing(member: dict[str, Any]) -> None:
    """A key without use and alg is usable, and what else it says is not looked at."""
    assert len(parse_key_set(key_set(member), "ES256").candidates("key-1")) == 1


UNUSABLE: list[object] = [
    None,
    "text",
    [],
    {},
    {**JWK, "use": "enc"},
    {**JWK, "use": ["sig"]},
    {**without("use"), "key_ops": ["sign"]},
    {**without("use"), "key_ops": "verify"},
    {**JWK, "alg": "ES384"},
    {**JWK, "alg": "none"},
    {**JWK, "alg": None},
    {**JWK, "d": "AQAB"},
    {**JWK, "kid": 7},
    {**JWK, "kid": "k" * 257},
    {**JWK, "crv": "P-384"},
    {**JWK, "crv": "secp256k1"},
    {**JWK, "kty": "RSA"},
    {**JWK, "kty": ["EC"]},
    {**JWK, "x": 7},
    {**JWK, "x": "AAAA"},
    {**JWK, "x": JWK["y"]},
    {**JWK, "y": "€"},
    {**JWK, "y": "A" * 100_000},
    without("y"),
    {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256", "kid": "key-1"},
    {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "ES256", "kid": "key-1"},
    SigningKey.generate("ES384", "key-1").public_jwk,
    KEYS["RS256"].public_jwk,
    KEYS["EdDSA"].public_jwk,
]


@pytest.mark.parametrize("member", UNUSABLE)
def test_an_unusable_member_is_passed_over(member: object) -> None:
    """What is no public key for verifying with the algorithm does no harm to those beside it."""
    document = json.dumps({"keys": [member, dict(JWK) | {"kid": "good"}, member]}).encode()
    keys = parse_key_set(document, "ES256")
    assert len(keys) == 1
    assert len(keys.candidates("good")) == 1
    assert keys.candidates("key-1") == ()
    with pytest.raises(UnusableKeySetError):
        parse_key_set(json.dumps({"keys": [member]}).encode(), "ES256")


@pytest.mark.parametrize(
    "changes",
    [
        {"n": SigningKey.generate("RS256", rsa_bits=1024).public_jwk["n"]},
        {"e": "AQ"},
        {"e": "Ag"},
        {"n": "A"},
        {"n": "_" * 2000},
        {"d": "AQAB"},
        {"n": ["AQAB"]},
    ],
)
def test_weak_and_strange_rsa_keys_are_passed_over(changes: dict[str, Any]) -> None:
    """A short modulus, an exponent of one or a private part makes an RSA key unusable."""
    with pytest.raises(UnusableKeySetError):
        parse_key_set(key_set({**KEYS["RS256"].public_jwk, **changes}), "RS256")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b'{"keys": []}',
        b'{"keys": [}',
        b"<html>Sign in</html>",
        b"\xff\xfe",
        b"[" * 200_000,
        json.dumps({"keys": [dict(JWK)] * (MAX_KEYS + 1)}).encode(),
    ],
)
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    """A page that asks for a password, an empty set or a thousand keys is no key set."""
    with pytest.raises(UnusableKeySetError) as caught:
        parse_key_set(document, "ES256")
    assert str(caught.value).startswith("it ")


@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
def test_a_shared_secret_is_never_taken_from_a_set(algorithm: str) -> None:
    """What everybody can fetch is no secret."""
    document = b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "use": "sig"}]}'
    with pytest.raises(UnusableKeySetError):
        parse_key_set(document, algorithm)


def test_a_token_without_key_id_means_the_only_key() -> None:
    """With one key there is no doubt which; with two there is, and none is tried."""
    other = SigningKey.generate("ES256", "key-2")
    twice = parse_key_set(key_set(JWK, {**JWK, "kid": "also-1"}), "ES256")
    assert len(twice) == 1
    assert len(twice.candidates(None)) == 1
    assert parse_key_set(key_set(JWK, other), "ES256").candidates(None) == ()


def test_keys_that_share_an_id_are_all_candidates() -> None:
    """An issuer that gives every key the same id is served; the same key twice counts once."""
    other = SigningKey.generate("ES256", "key-1")
    keys = parse_key_set(key_set(JWK, other, JWK), "ES256")
    assert len(keys) == 2
    assert len(keys.candidates("key-1")) == 2


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "verify", "AQAB"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["keys", "kty", "kid", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
member_names = st.sampled_from(
    ["kty", "use", "key_ops", "alg", "kid", "crv", "x", "y", "n", "e", "d", "k", "x5c", "oth"]
)
changed_members = st.tuples(
    st.sampled_from(list(KEYS)), st.dictionaries(member_names, json_values, max_size=4)
).map(lambda drawn: {**KEYS[drawn[0]].public_jwk, **drawn[1]})


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(list(KEYS)),
    json_values | st.lists(changed_members, max_size=4).map(lambda keys: {"keys": keys}),
)
def test_any_document_gives_keys_or_a_reason(algorithm: str, document: object) -> None:
    """Whatever a key server says, the outcome is a set of keys or a reason why there is none."""
    outcome: KeySet | UnusableKeySetError
    try:
        outcome = parse_key_set(json.dumps(document).encode(), algorithm)
    except UnusableKeySetError as error:
        outcome = error
    if isinstance(outcome, KeySet):
        assert len(outcome) > 0
    else:
        assert str(outcome).startswith("it ")


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_give_a_reason(document: bytes) -> None:
    """Bytes that are no key set are refused, with a reason."""
    with pytest.raises(UnusableKeySetError, match=r"^it "):
        parse_key_set(document, "ES256")
