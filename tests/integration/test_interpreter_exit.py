"""A program may end at any moment: with calls in flight, pods running, loops in threads."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.programs import environment
from helpers.servers import Server

# Deadlines that only a program that hangs reaches. Between them lies the machine: a run starts an
# interpreter, which takes half a second of CPU time, and a test makes a hundred runs.
ENDS_WITHIN = 180.0
ALL_END_WITHIN = 1800

TIMES = {
    "calls in flight on a loop": 100,
    "calls in flight without a loop": 30,
    "a loop in a daemon thread": 100,
}

PROGRAMS = {
    "calls in flight on a loop": """
        import asyncio, sys, podlink

        client = podlink.ClientDriver(podlink.Store(sys.argv[1]))

        async def main():
            link = client.set_linked_pod_if_absent
            calls = [link(None, f"u{at}", "svc", 1, timeout=60) for at in range(50)]
            tasks = [asyncio.create_task(call) for call in calls]
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
        server.submit("start", timeout=60).result(60)
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
                await link(None, f"u{worker}-{at % 100}", "svc", 1, timeout=60)
                under_way.set()

        async def main():
            await asyncio.gather(*(work(worker) for worker in range(10)))

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        assert under_way.wait(60)
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
        timeout=ENDS_WITHIN,
        check=False,
    )
    return f"{process.returncode}{process.stdout}{process.stderr}"


@pytest.mark.timeout(ALL_END_WITHIN)
@pytest.mark.parametrize("title", PROGRAMS)
def test_every_program_ends_well(valkey_server: Server, title: str) -> None:
    valkey_server.flush()
    source = textwrap.dedent(PROGRAMS[title])
    with ThreadPoolExecutor(max_workers=4) as pool:
        runs = range(TIMES[title])
        endings = list(pool.map(lambda run: ended(source, valkey_server.url, run), runs))
    assert endings == ["0"] * TIMES[title]
