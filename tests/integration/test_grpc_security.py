"""Who may connect and who may call what: real certificates, real tokens."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

import podlink
from helpers.canaries import MARK
from helpers.relay import Relay
from helpers.wait import eventually_async

RULES = [("game", "SetLinkedPodIfAbsent", "prod"), ("game", "GetLinkedPod", "prod")]
PATIENT = podlink.GrpcClientConfig(timeout=60, connect_timeout=30)


class Authority:
    """A certificate authority whose files lie in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        folder = folder / name
        folder.mkdir()
        self.folder, self.ca = folder, trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)

    def issue(self, file: str, *names: str, **options: Any) -> tuple[Path, Path]:
        """A certificate for these names, and its key."""
        issued = self.ca.issue_cert(*names, **options)
        cert, key = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return cert, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


class Stage:
    """A server with mutual TLS, and clients of it."""

    def __init__(self, authority: Authority, stack: AsyncExitStack) -> None:
        self.authority, self._stack = authority, stack
        self.store = podlink.Store()
        self.address = ""

    async def serve(self, issued: tuple[Path, Path] | None = None, **options: Any) -> None:
        cert, key = issued or self.authority.issue("server", "localhost", "127.0.0.1")
        server = podlink.RouteGrpcServer(
            self.store, "prod", authorize=RULES, cert_file=cert, key_file=key, **options
        )
        await self._stack.enter_async_context(server)
        assert server.address is not None
        self.address = server.address

    async def client(self, **options: Any) -> podlink.RouteGrpcClient:
        given: dict[str, Any] = {
            "ca_file": self.authority.ca_file,
            "namespace": "prod",
            "config": PATIENT,
        }
        client = podlink.RouteGrpcClient(f"grpcs://{self.address}", **(given | options))
        return await self._stack.enter_async_context(client)


@pytest.fixture
async def stage(authority: Authority) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        stage = Stage(authority, stack)
        await stage.serve(client_ca_file=authority.ca_file)
        yield stage


def files(issued: tuple[Path, Path]) -> dict[str, Path]:
    return {"cert_file": issued[0], "key_file": issued[1]}


@pytest.mark.parametrize(
    "name", ["game", "client.game.svc.cluster.local", "client.game.svc"], ids=str
)
async def test_a_certificate_is_the_callers_name(stage: Stage, name: str) -> None:
    client = await stage.client(**files(stage.authority.issue("client", name)))
    assert await client.set_linked_pod_if_absent(None, "u1", "svc", 0) == 0
    with pytest.raises(podlink.PermissionDeniedError) as caught:
        await client.set_linked_pod(None, "u1", "svc", 1)
    assert caught.value.details["method"] == "SetLinkedPod"
    assert caught.value.outcome == "not sent"
    with pytest.raises(podlink.PermissionDeniedError):
        await client.get_linked_pod("other", "u1", "svc")


async def test_a_certificate_of_somebody_else_may_nothing(stage: Stage) -> None:
    client = await stage.client(**files(stage.authority.issue("client", "stranger")))
    with pytest.raises(podlink.PermissionDeniedError, match="stranger"):
        await client.get_linked_pod(None, "u1", "svc")


async def test_common_names_count_only_alone(stage: Stage) -> None:
    issued = stage.authority.issue("client", "stranger", common_name="game")
    client = await stage.client(**files(issued))
    with pytest.raises(podlink.PermissionDeniedError):
        await client.get_linked_pod(None, "u1", "svc")


async def unreachable(client: podlink.RouteGrpcClient, why: str = "") -> str:
    """What a call says for which no connection comes about, once it knows `why`."""

    async def told() -> str | None:
        with pytest.raises((podlink.PeerUnavailableError, podlink.OperationTimeoutError)) as caught:
            await client.get_linked_pod(None, "u1", "svc", timeout=1)
        text = str(caught.value)
        return text if caught.type is podlink.PeerUnavailableError and why in text else None

    text = await eventually_async(told)
    assert text
    return text


async def test_no_certificate(stage: Stage) -> None:
    await unreachable(await stage.client())


async def test_a_client_of_the_wrong_authority(stage: Stage, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    await unreachable(await stage.client(**files(other.issue("client", "game"))))


async def test_a_server_of_the_wrong_authority(stage: Stage, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    issued = files(stage.authority.issue("client", "game"))
    text = await unreachable(await stage.client(ca_file=other.ca_file, **issued), "certificate")
    assert "certificate" in text


async def test_a_server_of_another_name(stage: Stage) -> None:
    issued = files(stage.authority.issue("client", "game"))
    text = await unreachable(await stage.client(server_name="prod.example", **issued), "name")
    assert "name" in text
    client = await stage.client(server_name="localhost", **issued)
    assert await client.get_linked_pod(None, "u1", "svc") is None


NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
VALIDITIES = {
    "expired": {"not_before": NOW - 2 * DAY, "not_after": NOW - DAY},
    "not valid yet": {"not_before": NOW + DAY, "not_after": NOW + 2 * DAY},
}


@pytest.mark.parametrize("validity", VALIDITIES)
async def test_a_certificate_of_a_client_at_the_wrong_time(stage: Stage, validity: str) -> None:
    issued = stage.authority.issue("client", "game", **VALIDITIES[validity])
    await unreachable(await stage.client(**files(issued)))


@pytest.mark.parametrize("validity", VALIDITIES)
async def test_a_certificate_of_a_server_at_the_wrong_time(
    authority: Authority, validity: str
) -> None:
    async with AsyncExitStack() as stack:
        stage = Stage(authority, stack)
        issued = authority.issue("server", "localhost", "127.0.0.1", **VALIDITIES[validity])
        await stage.serve(issued, client_ca_file=authority.ca_file)
        client = await stage.client(**files(authority.issue("client", "game")))
        text = await unreachable(client, validity)
        assert validity in text


async def test_plain_text_to_a_server_with_tls(stage: Stage) -> None:
    async with podlink.RouteGrpcClient(
        f"grpc://{stage.address}", namespace="prod", config=PATIENT
    ) as client:
        await unreachable(client)


async def test_a_certificate_is_rotated_under_load(stage: Stage) -> None:
    issued = files(stage.authority.issue("client", "game"))
    old = await stage.client(**issued)
    calls, done = 0, False

    async def load() -> None:
        nonlocal calls
        while not done:
            await old.get_linked_pod(None, f"u{calls}", "svc")
            calls += 1

    workers = [asyncio.create_task(load()) for _ in range(8)]
    await eventually_async(lambda: calls > 100)
    # Another authority issues the new certificate: only who trusts that one can connect anew.
    other = Authority(stage.authority.folder, "next")
    cert, key = other.issue("server", "localhost", "127.0.0.1")
    (stage.authority.folder / "server.key").write_bytes(key.read_bytes())
    (stage.authority.folder / "server.pem").write_bytes(cert.read_bytes())

    async def rotated() -> bool:
        client = await stage.client(ca_file=other.ca_file, **issued)
        try:
            await client.get_linked_pod(None, "u1", "svc", timeout=0.5)
        except (podlink.PeerUnavailableError, podlink.OperationTimeoutError):
            return False
        return True

    await eventually_async(rotated)
    seen = calls
    await eventually_async(lambda: calls > seen + 100)
    done = True
    await asyncio.gather(*workers)


async def test_certificates_are_rotated_again_and_again_without_an_error(
    authority: Authority,
) -> None:
    """Of both ends, while connections grow old and are made anew with whatever is there then."""
    async with AsyncExitStack() as stack:
        stage = Stage(authority, stack)
        limits = podlink.GrpcServerConfig(connection_age=1.0)
        await stage.serve(client_ca_file=authority.ca_file, config=limits)
        address = stage.address
        relay = await stack.enter_async_context(Relay(address))
        stage.address = relay.address
        client = await stage.client(**files(authority.issue("client", "game")))
        calls, done = 0, False

        async def load() -> None:
            nonlocal calls
            while not done:
                await client.get_linked_pod(None, f"u{calls}", "svc")
                calls += 1

        workers = [asyncio.create_task(load()) for _ in range(8)]
        for _ in range(3):
            authority.issue("server", "localhost", "127.0.0.1")
            authority.issue("client", "game")
            connections, answers = relay.connections + 1, calls + 100

            def renewed(connections: int = connections, answers: int = answers) -> bool:
                return relay.connections >= connections and calls >= answers

            await eventually_async(renewed)
        done = True
        await asyncio.gather(*workers)


# --- Tokens ------------------------------------------------------------------------------------

OLD, NEW = f"{MARK}old-token-0123456789", f"{MARK}new-token-0123456789"


async def test_tokens_and_their_rotation(authority: Authority, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "token"
    tokens.write_text(f"game {OLD}\n")
    mine.write_text(f"{OLD}\n")
    async with AsyncExitStack() as stack:
        stage = Stage(authority, stack)
        await stage.serve(tokens_file=tokens)
        client = await stage.client(token_file=mine)
        assert await client.set_linked_pod_if_absent(None, "u1", "svc", 0) == 0
        nobody = await stage.client()
        with pytest.raises(podlink.PermissionDeniedError, match="bearer token is needed"):
            await nobody.get_linked_pod(None, "u1", "svc")
        wrong = tmp_path / "wrong"
        wrong.write_text(NEW)
        stranger = await stage.client(token_file=wrong)
        with pytest.raises(podlink.PermissionDeniedError, match="not known"):
            await stranger.get_linked_pod(None, "u1", "svc")

        # Both are good at once; then only the new one.
        tokens.write_text(f"game {OLD}\ngame {NEW}\n")

        async def known(client: podlink.RouteGrpcClient) -> bool:
            try:
                await client.get_linked_pod(None, "u1", "svc")
            except podlink.PermissionDeniedError:
                return False
            return True

        async def stranger_known() -> bool:
            return await known(stranger)

        await eventually_async(stranger_known)
        assert await known(client)
        mine.write_text(NEW)
        tokens.write_text(f"game {NEW}\n# the old one is gone for good\n")

        async def only_new() -> bool:
            return await known(client) and await known(stranger)

        await eventually_async(only_new)


def test_no_tls_means_this_machine_alone() -> None:
    store = podlink.Store()
    with pytest.raises(podlink.InvalidParameterError, match="insecure=True"):
        podlink.RouteGrpcServer(store, listen="0.0.0.0:0")
    podlink.RouteGrpcServer(store, listen="0.0.0.0:0", insecure=True)


def test_a_token_does_not_leave_the_machine_unencrypted(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with pytest.raises(podlink.InvalidParameterError, match="insecure=True"):
        podlink.RouteGrpcClient("grpc://10.0.0.1:1", token_file=token)
    podlink.RouteGrpcClient("grpc://10.0.0.1:1", token_file=token, insecure=True)


async def test_nobody_is_allowed_anything_by_default() -> None:
    async with podlink.RouteGrpcServer(podlink.Store(), "prod") as server:
        client = podlink.RouteGrpcClient(f"grpc://{server.address}", namespace="prod")
        async with client:
            with pytest.raises(podlink.PermissionDeniedError, match="an unknown caller"):
                await client.get_linked_pod(None, "u1", "svc")


async def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    server = podlink.RouteGrpcServer(podlink.Store(), cert_file=missing, key_file=missing)
    with pytest.raises(podlink.InvalidParameterError, match=r"missing\.pem"):
        await server.start()
    await server.aclose()
