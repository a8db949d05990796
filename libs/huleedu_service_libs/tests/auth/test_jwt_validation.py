from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
from huleedu_service_libs.auth.jwt_validation import JWTClaims, decode_jwt
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.testing.jwt_helpers import create_jwt

# Shorter than PyJWT likes: where warnings are errors, its warning would fail each test here.
SECRET = "short"
CORRELATION_ID = UUID("5d4c5f5e-7c0e-4a37-9d53-6f7a2f2b9a11")
HS256 = b'{"alg":"HS256","typ":"JWT"}'
SETTINGS = JWTValidationSettings(
    JWT_ALGORITHM="HS256",
    JWT_AUDIENCE="huleedu-platform",
    JWT_ISSUER="huleedu-identity-service",
    JWT_SECRET_KEY=SecretStr(SECRET),
)


def good_claims(**changes: Any) -> dict[str, Any]:
    return {
        "sub": "teacher-1",
        "aud": SETTINGS.JWT_AUDIENCE,
        "iss": SETTINGS.JWT_ISSUER,
        "exp": int(time.time()) + 3600,
        **changes,
    }


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in good_claims().items() if key != name}


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def sign(payload: bytes, header: bytes = HS256) -> str:
    """A correctly signed token around any bytes."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))}"


def decode(token: str) -> JWTClaims:
    return decode_jwt(
        token, SETTINGS, service="door", operation="upgrade", correlation_id=CORRELATION_ID
    )


def refusal(token: str) -> HuleEduError:
    with pytest.raises(HuleEduError) as caught:
        decode(token)
    assert_leaks_nothing(caught.value, token)
    return caught.value


def reason(token: str) -> str:
    detail = refusal(token).error_detail
    assert detail.error_code == "AUTHENTICATION_ERROR"
    found: str = detail.details["reason"]
    return found


def assert_leaks_nothing(error: HuleEduError, token: str) -> None:
    assert error.__cause__ is None
    assert error.__context__ is None
    with pytest.raises(HuleEduError) as of_another_token:
        decode("another token")
    # What an error says of any token (our own code, in its stack trace) is no leak of this one.
    harmless = all_that_is_seen(of_another_token.value)
    # A very short part may occur in the text by chance.
    parts = [part for part in [token, *token.split(".")] if len(part) >= 16]
    assert not [part for part in parts if part in all_that_is_seen(error) and part not in harmless]


def all_that_is_seen(error: HuleEduError) -> str:
    return f"{error} {error!r} {error.args!r} {error.to_dict()!r} {error.error_detail.stack_trace}"


def test_genuine_token_says_who_it_is() -> None:
    """A valid token yields its subject, times in UTC, its id and all other claims."""
    now = int(time.time())
    claims = decode(
        create_jwt(SECRET, good_claims(exp=now + 60, iat=now, jti="t-1", roles=["teacher"]))
    )
    assert claims.subject == "teacher-1"
    assert claims.expires_at == datetime.fromtimestamp(now + 60, tz=UTC)
    assert claims.expires_at.utcoffset() == UTC.utcoffset(None)
    assert claims.issued_at == datetime.fromtimestamp(now, tz=UTC)
    assert claims.token_id == "t-1"
    assert claims.raw["roles"] == ["teacher"]


def test_only_the_required_claims_are_required() -> None:
    """A token without iat and jti is fine."""
    claims = decode(create_jwt(SECRET, good_claims()))
    assert claims.issued_at is None
    assert claims.token_id is None


@pytest.mark.parametrize(
    "extra",
    [
        {"aud": ["somebody", "huleedu-platform"]},
        {"exp": time.time() + 86_400.5},
        {"nbf": time.time() - 1},
        {"sub": "lärare 😀"},
    ],
)
def test_unusual_but_valid_tokens_are_accepted(extra: dict[str, Any]) -> None:
    """Several audiences, fractions of a second and names beyond ASCII are all legal."""
    assert decode(create_jwt(SECRET, good_claims(**extra))).subject


@pytest.mark.parametrize(
    ("claims", "message", "expected"),
    [
        (good_claims(exp=1), "Token has expired", "token_expired"),
        (without("exp"), "Token missing expiration claim", "missing_exp"),
        (without("sub"), "Token missing subject", "missing_subject"),
        (good_claims(aud="elsewhere"), "Invalid token audience", "invalid_audience"),
        (good_claims(iss="mallory"), "Invalid token issuer", "invalid_issuer"),
        (good_claims(nbf=time.time() + 600), "Invalid token", "invalid_token"),
    ],
)
def test_refusal_names_its_reason(claims: dict[str, Any], message: str, expected: str) -> None:
    """Each refusal carries the agreed message and reason, the service and the correlation id."""
    error = refusal(create_jwt(SECRET, claims))
    assert error.error_detail.message == message
    assert error.error_detail.details == {"reason": expected}
    assert (error.service, error.operation) == ("door", "upgrade")
    assert error.correlation_id == str(CORRELATION_ID)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (good_claims(exp=None), "missing_exp"),
        (good_claims(exp=time.time() - 0.5), "token_expired"),
        (good_claims(exp=-(10**400)), "token_expired"),
        (good_claims(exp=-math.inf), "invalid_token"),
        (good_claims(nbf=math.nan), "invalid_token"),
        (good_claims(exp=math.inf), "invalid_token"),
        (good_claims(exp=math.nan), "invalid_token"),
        (good_claims(exp=10**400), "invalid_token"),
        (good_claims(exp=253_402_300_800), "invalid_token"),
        (good_claims(exp=True), "invalid_token"),
        (good_claims(exp=[1]), "invalid_token"),
        (good_claims(exp="4102444800"), "invalid_token"),
        (good_claims(iat=None), "invalid_token"),
        (good_claims(iat=time.time() + 600), "invalid_token"),
        (good_claims(iat=-(10**400)), "invalid_token"),
        (good_claims(nbf="soon"), "invalid_token"),
        (good_claims(sub=None), "missing_subject"),
        (good_claims(sub=""), "missing_subject"),
        (good_claims(sub=" \t"), "missing_subject"),
        (good_claims(sub=7), "missing_subject"),
        (good_claims(sub=["teacher-1"]), "missing_subject"),
        (good_claims(sub="\ud800"), "invalid_token"),
        (good_claims(org_id="\udfff"), "invalid_token"),
        (without("aud"), "invalid_audience"),
        (good_claims(aud=[]), "invalid_audience"),
        (good_claims(aud=["huleedu-platform", 1]), "invalid_audience"),
        (good_claims(aud={"huleedu-platform": 1}), "invalid_audience"),
        (good_claims(aud="huleedu-platform "), "invalid_audience"),
        (without("iss"), "invalid_issuer"),
        (good_claims(iss=["huleedu-identity-service"]), "invalid_issuer"),
        (good_claims(jti=7), "invalid_token"),
    ],
)
def test_malformed_claims_are_refused(claims: dict[str, Any], expected: str) -> None:
    """A signed token whose claims have absurd values is refused like any other, never an error."""
    assert reason(create_jwt(SECRET, claims)) == expected


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"{",
        b"[" * 8000,
        b'{"exp":' + b"9" * 5000 + b"}",
    ],
)
def test_signed_payload_that_is_no_claim_set_is_refused(payload: bytes) -> None:
    """Whoever holds the key can still sign nonsense, and nonsense is refused."""
    assert reason(sign(payload)) == "invalid_token"


def test_number_too_large_for_a_float_is_refused() -> None:
    """An expiry of 1e400 reads as infinity and is refused."""
    claims = json.dumps(good_claims(exp=0)).replace('"exp": 0', '"exp": 1e400')
    assert reason(sign(claims.encode())) == "invalid_token"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b'{"alg":"none"}', "invalid_algorithm"),
        (b'{"alg":"HS512"}', "invalid_algorithm"),
        (b'{"alg":"RS256"}', "invalid_algorithm"),
        (b'{"alg":"hs256"}', "invalid_algorithm"),
        (b'{"alg":["HS256"]}', "invalid_algorithm"),
        (b'{"alg":null}', "invalid_algorithm"),
        (b'{"typ":"JWT"}', "invalid_algorithm"),
        (b"[]", "invalid_token"),
        (b"{" * 8000, "invalid_token"),
        (b"[" * 8000, "invalid_token"),
        (b"\xff", "invalid_token"),
        (b'{"alg":"HS256","kid":7}', "invalid_token"),
        (b'{"alg":"HS256","crit":["exp"],"exp":1}', "invalid_token"),
        (b'{"alg":"HS256","crit":["b64"],"b64":true}', "invalid_token"),
        (b'{"alg":"HS256","crit":["b64"],"b64":false}', "invalid_token"),
        (b'{"alg":"HS256","b64":false}', "invalid_token"),
    ],
)
def test_header_cannot_choose_how_it_is_verified(header: bytes, expected: str) -> None:
    """Neither another algorithm nor an unknown extension gets a correctly signed token through."""
    assert reason(sign(json.dumps(good_claims()).encode(), header)) == expected


def test_unsigned_token_is_refused() -> None:
    """A token with algorithm none and no signature does not pass."""
    assert reason(create_jwt(SECRET, good_claims(), "none")) == "invalid_algorithm"


def test_signature_by_another_key_is_refused() -> None:
    """A token signed with somebody else's secret does not pass."""
    assert reason(create_jwt("another", good_claims())) == "invalid_signature"


def test_forged_token_is_not_told_that_it_expired() -> None:
    """The signature is judged first: nothing is said about claims nobody vouches for."""
    assert reason(create_jwt("another", good_claims(exp=1))) == "invalid_signature"


@pytest.mark.parametrize("garbled", ["", "x", "AAAA", "tampered!", "====", "\u20ac"])
def test_garbled_signature_is_a_wrong_signature(garbled: str) -> None:
    """A signature that isn't even base64 is reported as what it is, a bad signature."""
    genuine = create_jwt(SECRET, good_claims())
    assert reason(f"{genuine.rpartition('.')[0]}.{garbled}") == "invalid_signature"
    unsigned = create_jwt(SECRET, good_claims(), "none")
    assert reason(f"{unsigned}{garbled}") == "invalid_algorithm"


def test_last_character_counts() -> None:
    """Changing any character of the signature, the last one's spare bits included, breaks it."""
    genuine = create_jwt(SECRET, good_claims())
    for position in range(genuine.rindex(".") + 1, len(genuine)):
        for other in "AB_":
            if genuine[position] != other:
                forged = f"{genuine[:position]}{other}{genuine[position + 1 :]}"
                assert reason(forged) == "invalid_signature"


def test_changed_payload_breaks_the_signature() -> None:
    """The claims can't be exchanged under a genuine signature."""
    header, _, signature = create_jwt(SECRET, good_claims()).split(".")
    _, payload, _ = create_jwt("other", good_claims(sub="admin")).split(".")
    assert reason(f"{header}.{payload}.{signature}") == "invalid_signature"


@pytest.mark.parametrize(
    "token", ["", ".", "..", "...", "a.b", "a.b.c", "not a token", "\ud800.a.b", "\0", "ä.ö.ü"]
)
def test_what_is_no_token_is_refused(token: str) -> None:
    """Text that was never a token is refused as such."""
    assert reason(token) == "invalid_token"


def test_enormous_token_is_refused_unread() -> None:
    """A token larger than any header is refused, even a genuine one."""
    assert reason(create_jwt(SECRET, good_claims(padding="x" * 16_384))) == "invalid_token"


def test_service_without_a_key_blames_itself() -> None:
    """If the service has no secret, that is a configuration error and not the visitor's fault."""
    bare = SETTINGS.model_copy(update={"JWT_SECRET_KEY": None})
    with pytest.raises(HuleEduError) as caught:
        decode_jwt("a.b.c", bare, service="door", operation="upgrade")
    assert caught.value.error_code == "CONFIGURATION_ERROR"


def test_claims_do_not_print_personal_data() -> None:
    """Logging the claims object shows the subject, not everything the token said."""
    assert "secret-name" not in repr(decode(create_jwt(SECRET, good_claims(name="secret-name"))))


def assert_verdict(token: str) -> None:
    try:
        verdict: JWTClaims | HuleEduError = decode(token)
    except HuleEduError as error:
        verdict = error
    if isinstance(verdict, HuleEduError):
        assert verdict.error_code == "AUTHENTICATION_ERROR"
        assert_leaks_nothing(verdict, token)
    else:
        assert verdict.subject.strip().encode()
        assert verdict.expires_at > datetime.now(tz=UTC)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["huleedu-platform", "huleedu-identity-service"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
claim_names = st.sampled_from(["exp", "nbf", "iat", "sub", "aud", "iss", "jti", "roles"])


@settings(deadline=None)
@given(st.text(st.characters()) | st.binary().map(b64))
def test_arbitrary_text_is_refused(text: str) -> None:
    """Whatever text is offered as a token, the answer is an authentication error."""
    assert reason(text) == "invalid_token"


@settings(deadline=None)
@given(st.binary(), st.binary(), st.binary())
def test_arbitrary_segments_are_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    """Three well-encoded segments of noise are refused."""
    assert_verdict(f"{b64(header)}.{b64(payload)}.{b64(signature)}")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "crit", "b64", "kid", "typ"]), json_values))
def test_arbitrary_headers_give_a_verdict(header: dict[str, Any]) -> None:
    """Whatever the header of a signed token says, the outcome is claims or a refusal."""
    encoded = json.dumps({"alg": "HS256", **header}).encode()
    assert_verdict(sign(json.dumps(good_claims()).encode(), encoded))


@settings(deadline=None)
@given(st.binary())
def test_arbitrary_signed_bytes_are_refused(payload: bytes) -> None:
    """Signed bytes that are no claim set are refused."""
    assert_verdict(sign(payload))


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(claim_names, json_values), st.sets(claim_names))
def test_arbitrary_signed_claims_give_a_verdict(changed: dict[str, Any], omitted: set[str]) -> None:
    """Whatever a signed token claims, the outcome is usable claims or a refusal."""
    claims = {k: v for k, v in good_claims(**changed).items() if k not in omitted}
    assert_verdict(create_jwt(SECRET, claims))
