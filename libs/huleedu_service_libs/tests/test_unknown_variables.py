"""Whoever misspells a variable is told."""

import pytest

from huleedu_service_libs.unknown_variables import report_unknown

KNOWN = {"ORDERS_PORT", "ORDERS_LOG_LEVEL", "JWT_ALGORITHM"}


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("ORDERS_PROT", ["unknown variable ORDERS_PROT: did you mean ORDERS_PORT?"]),
        ("ORDERS_XYZZY", ["unknown variable ORDERS_XYZZY"]),
        (
            "ORDERS_JWT_ALGORITHM",
            ["unknown variable ORDERS_JWT_ALGORITHM: did you mean JWT_ALGORITHM?"],
        ),
        ("ORDERS_PORT", []),
        ("JWT_ALGORITM", []),
        ("ORDERS_SERVICE_HOST", []),
    ],
)
def test_what_is_said(variable: str, said: list[str]) -> None:
    """Of our prefix what is no setting is named, with what was meant; others' are left alone."""
    assert report_unknown([variable], KNOWN, prefix="ORDERS_", others=("ORDERS_SERVICE_",)) == (
        said
    )
