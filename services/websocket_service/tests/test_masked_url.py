from __future__ import annotations

import pytest

from services.websocket_service.effective_settings import MASK, masked_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://r:6379/0", "redis://r:6379/0"),
        ("redis://user@r", "redis://user@r"),
        ("rediss://user:SECRET@r:6379/0", f"rediss://user:{MASK}@r:6379/0"),
        ("redis://:SEC/RE?T@r", f"redis://:{MASK}@r"),
        ("redis://:SEC@RET@r", f"redis://:{MASK}@r"),
        ("unix:///r.sock?db=1&password=SECRET", f"unix:///r.sock?db=1&password={MASK}"),
        ("unix://u:SECRET@/r.sock", f"unix://u:{MASK}@/r.sock"),
        ("redis://r:6379?password=SEC@RET", f"redis://r:{MASK}"),
        ("redis://:SEC?password=RET@r", f"redis://:{MASK}"),
        (
            "redis+sentinel://u:SECRET@a:1,b:2/m?sentinel_password=SECRET&sentinel_username=s",
            f"redis+sentinel://u:{MASK}@a:1,b:2/m?sentinel_password={MASK}&sentinel_username=s",
        ),
        (
            "rediss+cluster://:SECRET@[::1]:1,[::2]?ssl_password=SECRET&ssl_ca_certs=c",
            f"rediss+cluster://:{MASK}@[::1]:1,[::2]?ssl_password={MASK}&ssl_ca_certs=c",
        ),
        ("https://u:SECRET@k.example/keys", f"https://u:{MASK}@k.example/keys"),
        (
            "https://k.example/keys?code=SECRET&version=1#top",
            f"https://k.example/keys?code={MASK}&version={MASK}#top",
        ),
        ("HTTP://k.example/keys?SECRET", f"HTTP://k.example/keys?{MASK}"),
        ("https://k.example/?a=SECRET?b=SECRET", f"https://k.example/?a={MASK}"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    """Everything is shown but passwords, also where they are not escaped, and a page's query."""
    assert masked_url(url) == shown
