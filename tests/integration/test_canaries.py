"""No secret is ever shown: not where it is right, not where it is wrong, at no level of detail."""

import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import podlink
import podlink.otel
from conftest import ServerFactory
from helpers import canaries
from helpers.canaries import KEY, OTHER_TOKEN, PASSWORD, TOKEN, USER_PASSWORD, leaks
from helpers.commands import command
from helpers.grpc_servers import free_address
from helpers.programs import environment, run_program
from helpers.servers import TlsFiles
from helpers.traces import provider_with_memory, told


class Seen(logging.Handler):
    """Everything that anybody could read: records with all they carry, errors, reprs, spans."""

    def __init__(self) -> None:
        super().__init__(0)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.note(self.format(record), vars(record))

    def note(self, *things: object) -> None:
        """Keep what these things show of themselves."""
        for thing in things:
            if isinstance(thing, BaseException):
                self.texts += traceback.format_exception(thing)
                self.note(thing.args, getattr(thing, "details", None))
            self.texts += [str(thing), repr(thing)]

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.texts)


@pytest.fixture
def seen() -> Iterator[Seen]:
    """What is seen while everything is said that can be said."""
    seen, root = Seen(), logging.getLogger()
    level = root.level
    podlink._podlink.set_log_filter("trace")
    root.addHandler(seen)
    root.setLevel(0)
    provider, exporter = provider_with_memory()
    podlink.otel.enable(provider)
    yield seen
    podlink.otel.disable()
    seen.note(told(exporter.get_finished_spans()))
    root.removeHandler(seen)
    root.setLevel(level)
    podlink._podlink.set_log_filter("info")
    assert len(seen.texts) > 20
    assert leaks(seen.text) == []


async def use(seen: Seen, store: podlink.Store) -> None:
    """Does with a store what a service does, and looks at everything."""
    seen.note(store)
    async with store:
        client = podlink.ClientDriver(store)
        server = podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0))
        seen.note(client, server)
        for work in (
            server.start(timeout=5),
            client.compute_linked_pod(None, "u1", "svc", timeout=2),
            client.get_linked_pod_not_cache(None, "u1", "svc", timeout=2),
            store.ping(timeout=2),
            server.stop(deadline=2),
        ):
            try:
                seen.note(await work)
            except podlink.PodlinkError as error:
                seen.note(error)
        seen.note(client.stats(), store.metrics_text())
        await client.aclose()


@pytest.mark.parametrize("right", [True, False])
async def test_passwords_of_stores(
    server_factory: ServerFactory, tmp_path: Path, seen: Seen, right: bool
) -> None:
    server = server_factory(
        password=PASSWORD if right else "something else",
        users={"game": USER_PASSWORD if right else "something else"},
    )
    password = quote(PASSWORD, safe="")
    await use(seen, podlink.Store(f"redis://:{password}@127.0.0.1:{server.port}"))
    await use(seen, podlink.Store(f"redis://game:{USER_PASSWORD}@127.0.0.1:{server.port}"))
    url = f"redis://127.0.0.1:{server.port}"
    await use(seen, podlink.Store(url, username="game", password=USER_PASSWORD))
    server.kill()
    await use(seen, podlink.Store(f"redis://:{password}@127.0.0.1:{server.port}"))


def test_urls_that_cannot_be_used(seen: Seen) -> None:
    for url in (
        f"redis://:{PASSWORD}@host:port",
        f"redis://game:{USER_PASSWORD}@",
        f"reddis://:{USER_PASSWORD}@host",
        f"redis://host?password={USER_PASSWORD}&colour=red",
        f"redis://host/{USER_PASSWORD}@x",
    ):
        with pytest.raises(podlink.InvalidParameterError) as refused:
            podlink.Store(url)
        seen.note(refused.value)
    seen.note(podlink.connect(f"redis://game:{USER_PASSWORD}@host"))


async def test_bearer_tokens(tmp_path: Path, seen: Seen) -> None:
    tokens, mine, wrong = (tmp_path / name for name in ("tokens", "mine", "wrong"))
    tokens.write_text(f"game {TOKEN}\n")
    mine.write_text(TOKEN)
    wrong.write_text(OTHER_TOKEN)
    store = podlink.Store("memory://canary")
    server = podlink.RouteGrpcServer(
        store, "prod", tokens_file=tokens, authorize=[("game", "*", "prod")]
    )
    async with store, server:
        for file in (mine, wrong):
            async with podlink.RouteGrpcClient(f"grpc://{server.address}", token_file=file) as peer:
                seen.note(peer, server)
                try:
                    seen.note(await peer.set_linked_pod_if_absent("prod", "u1", "svc", 1))
                except podlink.PodlinkError as error:
                    seen.note(error)
        seen.note(server.config)
    # Files in which tokens stand wrongly.
    for text in (f"{TOKEN}\n", f"game {TOKEN} {OTHER_TOKEN}\n", f"game {TOKEN[:10]}\n"):
        tokens.write_text(text)
        again = podlink.RouteGrpcServer(store, "prod", tokens_file=tokens)
        with pytest.raises(podlink.PodlinkError) as refused:
            await again.start()
        seen.note(refused.value)
    mine.write_text(f"{TOKEN}\n{OTHER_TOKEN}\n\x1b")
    peer = podlink.RouteGrpcClient(f"grpc://{free_address()}", token_file=mine)
    with pytest.raises(podlink.PodlinkError) as refused:
        await peer.check_health(timeout=1)
    seen.note(refused.value)
    await peer.aclose()


async def test_keys(tmp_path: Path, seen: Seen) -> None:
    files = TlsFiles.create(tmp_path)
    broken = tmp_path / "broken.key"
    broken.write_text(f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n{KEY}\n")
    store = podlink.Store("memory://")
    server = podlink.RouteGrpcServer(
        store, "prod", cert_file=files.server_cert, key_file=broken, client_ca_file=files.ca
    )
    with pytest.raises(podlink.PodlinkError) as refused:
        await server.start()
    seen.note(refused.value, server)

    async def with_key(**options: Any) -> None:
        async with podlink.Store("rediss://localhost:1", **options) as secure:
            seen.note(secure)
            await secure.ping(timeout=1)

    with pytest.raises(podlink.PodlinkError) as failed:
        await with_key(cert_file=str(files.client_cert), key_file=str(broken))
    seen.note(failed.value)
    with suppress(podlink.PodlinkError):
        async with podlink.RouteGrpcClient(
            "grpcs://localhost:1", cert_file=files.client_cert, key_file=broken, ca_file=files.ca
        ) as peer:
            await peer.check_health(timeout=1)
    for own in (files.client_key, files.server_key):
        secret = own.read_text().splitlines()[1]
        assert secret not in seen.text


def test_the_command(server_factory: ServerFactory) -> None:
    server = server_factory(password=PASSWORD)
    password = quote(PASSWORD, safe="")
    good = f"redis://:{password}@127.0.0.1:{server.port}"
    bad = f"redis://game:{USER_PASSWORD}@127.0.0.1:{server.port}"
    env = {"PODLINK_LOG": "trace"}
    printed = []
    for url in (good, bad, f"redis:/:{PASSWORD}@x", f"redis://:{password}@127.0.0.1:1"):
        for verb in (["pods", "svc"], ["compute", "u1", "svc"], ["get", "u1", "svc", "--json"]):
            for ended in (
                command(*verb, "--store", url, env=env),
                command(*verb, env=env | {"PODLINK_STORE": url}),
            ):
                printed += [ended.stdout, ended.stderr]
    assert any(printed)
    assert leaks("".join(printed)) == []


def test_a_program_that_ends_with_an_error(server_factory: ServerFactory) -> None:
    server = server_factory(password="something else")
    printed = run_program(
        """
        import asyncio, os, subprocess, sys, textwrap
        program = textwrap.dedent('''
            import asyncio, logging, os, podlink
            logging.basicConfig(level=0)
            async def main():
                async with podlink.connect(os.environ["STORE"]) as connection:
                    await connection.client.compute_linked_pod(None, "u1", "svc")
            asyncio.run(main(), debug=True)
        ''')
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert ended.returncode == 1
        print(ended.stdout, ended.stderr)
        """,
        env={
            "STORE": f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}",
            "PODLINK_LOG": "trace",
        },
    )
    assert "StoreAuthenticationError" in printed
    assert leaks(printed) == []


def test_what_is_searched_for_would_be_found() -> None:
    for secret in canaries.ALL:
        assert secret.startswith(canaries.MARK)
        for shown in (f"<{secret}>", f"redis://:{quote(secret, safe='')}@h"):
            assert leaks(shown) == [secret]


def test_a_test_that_prints_a_secret_fails(tmp_path: Path) -> None:
    for name, printed in (("good", "nothing"), ("bad", f"{canaries.MARK}whatever")):
        (tmp_path / f"test_{name}.py").write_text(f"def test_it():\n    print({printed!r})\n")
    plugins = ["-p", "conftest", "-p", "no:cacheprovider", "-p", "no:valkey"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, f"--rootdir={tmp_path}", str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed" in ended.stdout
    assert "a secret of a test was printed: Captured stdout call" in ended.stdout
