"""Tokens that no identity service would make, and the ways in which a client can send one."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import websockets
from websockets.typing import Subprotocol

from tests.service_process import SECRET, ServiceProcess, token

HEADER = b'{"alg":"HS256","typ":"JWT"}'


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token, save for `changes`; None leaves one out."""
    good = {
        "sub": "teacher-1",
        "aud": "huleedu-platform",
        "iss": "huleedu-identity-service",
        "exp": int(time.time()) + 3600,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(
    payload: Mapping[str, Any] | bytes, *, header: bytes = HEADER, secret: str = SECRET
) -> str:
    """A token whose HS256 signature is right, whatever it signs."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signing_input = f"{_base64(header)}.{_base64(body)}"
    signature = hmac.digest(secret.encode(), signing_input.encode(), hashlib.sha256)
    return f"{signing_input}.{_base64(signature)}"


def with_raw_claim(name: str, value: str) -> str:
    """A token that has a claim in the very spelling that is given."""
    others = json.dumps(claims(**{name: None}))
    return signed(f'{others[:-1]}, "{name}": {value}}}'.encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def without_signature(payload: Mapping[str, Any]) -> str:
    """`alg: none`."""
    header, body = _base64(b'{"alg":"none"}'), _base64(json.dumps(payload).encode())
    return f"{header}.{body}."


def _connect(
    service: ServiceProcess, query: str = "", *, subprotocols: tuple[str, ...] = (), **options: Any
) -> websockets.connect:
    return websockets.connect(
        service.url + query,
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        **{"proxy": None, **options},
    )


def by_query(service: ServiceProcess, bearer: str) -> websockets.connect:
    return _connect(service, f"?token={quote(bearer)}")


def by_header(service: ServiceProcess, bearer: str) -> websockets.connect:
    return _connect(service, additional_headers={"Authorization": f"Bearer {bearer}"})


def by_subprotocol(service: ServiceProcess, bearer: str) -> websockets.connect:
    return _connect(service, subprotocols=(f"bearer.{bearer}",))


def by_subprotocol_in_v1(service: ServiceProcess, bearer: str) -> websockets.connect:
    return _connect(service, subprotocols=("huleedu.notify.v1", f"bearer.{bearer}"))


WAYS: dict[str, Callable[[ServiceProcess, str], websockets.connect]] = {
    "query": by_query,
    "header": by_header,
    "subprotocol": by_subprotocol,
}

_NESTED = "[" * 2000 + "]" * 2000

BAD_TOKENS = {
    "expired": (token(exp=int(time.time()) - 1), "token_expired"),
    "expired long ago": (token(exp=0), "token_expired"),
    "without exp": (token(exp=None), "missing_exp"),
    "exp is null": (with_raw_claim("exp", "null"), "missing_exp"),
    "exp is text": (token(exp="2099-01-01"), "invalid_token"),
    "exp is true": (token(exp=True), "invalid_token"),
    "exp is infinite": (with_raw_claim("exp", "1e400"), "invalid_token"),
    "exp is minus infinite": (with_raw_claim("exp", "-1e400"), "token_expired"),
    "exp is NaN": (with_raw_claim("exp", "NaN"), "invalid_token"),
    "exp is after the year 9999": (with_raw_claim("exp", "1e300"), "invalid_token"),
    "exp has 5,000 digits": (with_raw_claim("exp", "9" * 5000), "invalid_token"),
    "not yet valid": (token(nbf=int(time.time()) + 3600), "invalid_token"),
    "without sub": (token(sub=None), "missing_subject"),
    "empty sub": (token(""), "missing_subject"),
    "blank sub": (token(" \n"), "missing_subject"),
    "sub is a number": (token(sub=1), "missing_subject"),
    "sub is half a surrogate pair": (with_raw_claim("sub", '"\\ud800"'), "invalid_token"),
    "without aud": (token(aud=None), "invalid_audience"),
    "foreign audience": (token(aud="somebody-else"), "invalid_audience"),
    "foreign audiences": (token(aud=["a", "b"]), "invalid_audience"),
    "without iss": (token(iss=None), "invalid_issuer"),
    "foreign issuer": (token(iss="somebody-else"), "invalid_issuer"),
    "foreign secret": (signed(claims(), secret="guessed"), "invalid_signature"),
    "tampered": (token()[:-4] + "AAAA", "invalid_signature"),
    "without signature": (token().rpartition(".")[0] + ".", "invalid_signature"),
    "alg none": (without_signature(claims()), "invalid_algorithm"),
    "alg None, signed": (signed(claims(), header=b'{"alg":"None"}'), "invalid_algorithm"),
    "alg HS512": (signed(claims(), header=b'{"alg":"HS512"}'), "invalid_algorithm"),
    "alg RS256": (signed(claims(), header=b'{"alg":"RS256"}'), "invalid_algorithm"),
    "alg is a list": (signed(claims(), header=b'{"alg":["HS256"]}'), "invalid_algorithm"),
    "unknown critical extension": (
        signed(claims(), header=b'{"alg":"HS256","crit":["x"],"x":1}'),
        "invalid_token",
    ),
    "header nested deeply": (signed(claims(), header=_NESTED.encode()), "invalid_token"),
    "claims nested deeply": (with_raw_claim("x", _NESTED), "invalid_token"),
    "claims are a list": (signed(b"[]"), "invalid_token"),
    "claims are no JSON": (signed(b"{"), "invalid_token"),
    "claims are no UTF-8": (signed(b'{"sub":"\xff"}'), "invalid_token"),
    "8 kB, foreign secret": (signed(claims(x="x" * 5900), secret="guessed"), "invalid_signature"),
    "8 kB of nothing": ("a" * 8000, "invalid_token"),
    "garbage": ("garbage", "invalid_token"),
    "two parts": ("a.b", "invalid_token"),
    "dots": ("..", "invalid_token"),
    "five parts": ("a.b.c.d.e", "invalid_token"),
}
"""By what is wrong with it: the token, and the reason in the error body's details."""

MESSAGES = {
    "token_expired": "Token has expired",
    "missing_exp": "Token missing expiration claim",
    "missing_subject": "Token missing subject",
    "invalid_audience": "Invalid token audience",
    "invalid_issuer": "Invalid token issuer",
    "invalid_signature": "Token signature verification failed",
    "invalid_algorithm": "Algorithm not allowed",
    "invalid_token": "Invalid token",
}
