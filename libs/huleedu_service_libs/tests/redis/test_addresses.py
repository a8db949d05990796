"""The kinds of URL under which a Redis can be reached."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from redis import exceptions

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServerError
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.testing.redis_sentinels import RedisSentinels

if TYPE_CHECKING:
    from pathlib import Path

    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import HearAgain, Next, StartServer


async def check(url: str, hear: Next, timeout_s: float = 5.0) -> None:
    async with (
        RedisClient(client_id="test", redis_url=url, timeout_s=timeout_s) as client,
        client.subscribe("a") as subscription,
    ):
        assert await client.publish("a", b"hello") == 1
        assert await hear(subscription) == b"hello"


async def test_unix_socket(server: RedisServer, hear: Next) -> None:
    """A Unix socket serves commands and subscriptions."""
    await check(f"unix://{server.socket_path}", hear)


async def test_unix_socket_with_password(start_server: StartServer, hear: Next) -> None:
    """The password of a Unix socket stands in the query."""
    async with start_server(options={"requirepass": "s/cret"}) as server:
        await check(f"unix://{server.socket_path}?password={quote('s/cret', safe='')}", hear)


async def test_database_number(server: RedisServer, hear: Next) -> None:
    """Channels are the same in every database; keys are not."""
    await check(f"{server.url}/3", hear)
    async with (
        RedisClient(client_id="test", redis_url=f"{server.url}/3") as third,
        RedisClient(client_id="test", redis_url=server.url) as first,
    ):
        await third.setex("k", 60, "v")
        assert (await third.get("k"), await first.get("k")) == ("v", None)


def make_certificate(folder: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", "key.pem", "-out", "certificate.pem", "-days", "2"),
            *("-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )


async def test_tls(
    start_server: StartServer, tmp_path: Path, hear: Next, hear_again: HearAgain
) -> None:
    """TLS serves commands and subscriptions, and who has another certificate is not believed."""
    make_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = start_server(
        options={
            "tls-port": str(port),
            "tls-cert-file": str(tmp_path / "certificate.pem"),
            "tls-key-file": str(tmp_path / "key.pem"),
            "tls-auth-clients": "no",
        }
    )
    try:
        await server.__aenter__()
    except RedisServerError as error:
        # Those that packages bring are built without TLS and say so.
        assert re.search("tls-port|TLS support", str(error))  # noqa: PT017 - as the binary is
        return
    try:
        trusting = f"rediss://localhost:{port}?ssl_ca_certs={tmp_path}/certificate.pem"
        await check(trusting, hear)
        with pytest.raises(exceptions.TimeoutError, match="CERTIFICATE_VERIFY_FAILED"):
            await check(f"rediss://localhost:{port}", hear, 0.5)
        await check(f"rediss://localhost:{port}?ssl_cert_reqs=none", hear)

        client = RedisClient(client_id="test", redis_url=trusting, timeout_s=0.6)
        async with client, client.subscribe("a") as subscription:
            await server.kill()
            await server.launch()
            assert await hear_again(client, "a", subscription) == b"again"
            server.signal(signal.SIGSTOP)
            with pytest.raises(exceptions.TimeoutError):
                await client.ping()
            with pytest.raises(exceptions.TimeoutError):
                await client.subscribe("b").__aenter__()
            async with asyncio.timeout(5):
                await client.stop()
    finally:
        await server.__aexit__(None, None, None)


async def test_tls_to_sentinels_and_clusters(
    redis_binary: Path, tmp_path: Path, hear: Next
) -> None:
    """Sentinels, the master that they name, and each node of a Cluster can be reached by TLS."""
    make_certificate(tmp_path)
    certificate = tmp_path / "certificate.pem"
    options = {
        "port": "0",
        "tls-port": "{port}",
        "tls-cert-file": str(certificate),
        "tls-key-file": str(tmp_path / "key.pem"),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
        "tls-cluster": "yes",
        "tls-replication": "yes",
    }
    sentinels = RedisSentinels(redis_binary, options=options, sentinel_options=options)
    cluster = RedisCluster(redis_binary, options=options)
    for topology in (sentinels, cluster):
        try:
            async with topology:
                url = topology.url.replace("redis+", "rediss+")
                await check(f"{url}?ssl_ca_certs={certificate}", hear)
                async with RedisClient(client_id="test", redis_url=url) as client:
                    with pytest.raises(exceptions.ConnectionError, match="CERTIFICATE_VERIFY"):
                        await client.ping()
        except RedisServerError as error:
            assert re.search("tls-port|TLS support", str(error))  # noqa: PT017 - as the binary is
