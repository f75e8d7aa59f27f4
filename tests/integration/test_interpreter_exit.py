"""A program may end at any moment: with calls in flight, pods running, loops in threads."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.programs import environment
from helpers.servers import Server

TIMES = 100

PROGRAMS = {
    "calls in flight on a loop": """
        import asyncio, sys, podlink

        client = podlink.ClientDriver(podlink.Store(sys.argv[1]))

        async def main():
            link = client.set_linked_pod_if_absent
            tasks = [asyncio.create_task(link(None, f"u{at}", "svc", 1)) for at in range(50)]
            await tasks[0]

        asyncio.run(main())
    """,
    "calls in flight without a loop": """
        import sys, podlink

        class Late:
            def on_success(self, result): ...
            def on_error(self, error): ...

        store = podlink.Store(sys.argv[1])
        client = podlink.ClientDriver(store)
        server = podlink.ServerDriver(store, podlink.ServerInfo("default", f"s{sys.argv[2]}", 0))
        server.submit("start").result(30)
        for at in range(50):
            client.submit("compute_linked_pod", None, f"u{at}", f"s{sys.argv[2]}", callback=Late())
    """,
    "a loop in a daemon thread": """
        import asyncio, sys, threading, podlink

        store = podlink.Store(sys.argv[1])
        client = podlink.ClientDriver(store)
        under_way = threading.Event()

        async def work(worker):
            link = client.set_linked_pod_if_absent
            for at in range(1_000_000):
                await link(None, f"u{worker}-{at % 100}", "svc", 1)
                under_way.set()

        async def main():
            await asyncio.gather(*(work(worker) for worker in range(10)))

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        assert under_way.wait(30)
    """,
}


def ended(source: str, url: str, run: int) -> str:
    """How one run ended: "0" and nothing else, if it ended well."""
    process = subprocess.run(
        [sys.executable, "-c", source, url, str(run)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return f"{process.returncode}{process.stdout}{process.stderr}"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("title", PROGRAMS)
def test_a_hundred_programs_end_well(valkey_server: Server, title: str) -> None:
    valkey_server.flush()
    source = textwrap.dedent(PROGRAMS[title])
    with ThreadPoolExecutor(max_workers=4) as pool:
        endings = list(pool.map(lambda run: ended(source, valkey_server.url, run), range(TIMES)))
    assert endings == ["0"] * TIMES
