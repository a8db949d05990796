"""What counts as a secret."""

import re
import secrets
from pathlib import Path

import pytest

from huleedu_service_libs.auth.weak_secrets import WELL_KNOWN_SECRETS, weakness

RANDOM = "Wfu8N_ppadzmjEeKwtBVPYPnh6R0NheI8FQflu3ujb0"
REPO = Path(__file__).parents[4]
# As `JWT_SECRET_KEY=SecretStr("…")` or `JWT_SECRET_KEY=…`, unless the shell makes it.
EXAMPLE = re.compile(
    r"""(?:JWT_SECRET_KEY|INTERNAL_API_KEY)=(?:SecretStr\()?["']?([^\s"'`)$…]{8,})"""
)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        *((secret, "well-known") for secret in sorted(WELL_KNOWN_SECRETS)),
        ("ChangeMe", "well-known"),
        ("changeme" * 4, "well-known"),
        ("your-256-bit-secret-your-256-bit-secret", "well-known"),
        ("My_Secret/PASSWORD.my_secret/password", "well-known"),
        ("changeme\n", "well-known"),
        (f"{RANDOM}\n", "white space"),
        (f" {RANDOM}", "white space"),
        ("k", "fewer than 32 bytes"),
        (RANDOM[:31], "fewer than 32 bytes"),
        ("a" * 44, "repeats itself"),
        ("abcdefg" + "gfedcba" * 5, "repeats itself"),
        ("0123456789abcdef" * 2, "repeats itself"),
        (RANDOM[:20] * 2, "repeats itself"),
        ("1234567890" * 4, "repeats itself"),
    ],
)
def test_what_can_be_guessed_is_told(secret: str, said: str) -> None:
    """Whoever brings such a secret learns what is wrong with it."""
    assert said in (weakness(secret) or "")


@pytest.mark.parametrize(
    "secret",
    [
        RANDOM,
        RANDOM * 2,
        RANDOM[:32],
        f"dev-{RANDOM}",
        f"{RANDOM}-secret",
        f"{'ü' * 9}{RANDOM[:14]}",
        "91827364509182736450129834756109",
        "",
        "  ",
    ],
)
def test_what_can_not_be_guessed_will_do(secret: str) -> None:
    """Secrets of any alphabet have no weakness; a blank one is none at all."""
    assert weakness(secret) is None


def test_random_secrets_will_do() -> None:
    """What people are told to take is never refused."""
    for _ in range(1_000):
        assert weakness(secrets.token_urlsafe(32)) is None
        assert weakness(secrets.token_hex(32)) is None


def test_no_example_of_ours_can_be_used() -> None:
    """A secret that somebody copies from these pages is refused where it matters."""
    pages = [path for path in REPO.rglob("*.md") if ".venv" not in path.parts]
    examples = {
        found for path in pages for found in EXAMPLE.findall(path.read_text(encoding="utf-8"))
    }
    assert "only-for-this-example-0123456789" in examples
    assert {example for example in examples if weakness(example) is None} == set()
