"""After os.fork a driver belongs to the parent: the child is told so, and makes its own."""

import pytest

from conftest import ServerFactory
from helpers.programs import run_program
from helpers.servers import Server

# What every program here begins with: a driver that has worked, and a way to judge a child.
PRELUDE = """
import asyncio, gc, multiprocessing, os, signal, sys, threading
import podlink
from podlink import ForkedProcessError

USER = (None, "u1", "svc")
url = sys.argv[1]
store = podlink.Store(url)
client = podlink.ClientDriver(store)
server = podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0))

async def warm_up():
    await server.start()
    assert await client.compute_linked_pod(*USER) == 0
    assert client.get_linked_in_cache(*USER) == 0

def in_child(function, *arguments):
    # A child that hangs is killed, and that is not exit code 0.
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        function(*arguments)
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status:#x}"

def refused(call):
    try:
        result = call()
        if asyncio.iscoroutine(result):
            asyncio.run(result)
    except ForkedProcessError as error:
        assert "fork" in str(error) and not error.retryable, error
        return
    raise AssertionError("nobody noticed the fork")

async def makes_its_own(pod):
    async with podlink.Store(url) as store, podlink.ClientDriver(store) as client:
        info = podlink.ServerInfo("default", f"svc-{pod}", pod)
        async with podlink.ServerDriver(store, info):
            assert await client.compute_linked_pod(None, "u2", f"svc-{pod}") == pod

async def still_works():
    assert await client.compute_linked_pod(*USER) == 0
    assert await client.set_linked_pod_if_absent(None, "after", "svc", 0) == 0
    assert server.holds_lease
    await server.stop()

asyncio.run(warm_up())
"""

BODIES = {
    "every operation is refused": """
def child():
    calls = [
        lambda: client.compute_linked_pod(*USER),
        lambda: client.compute_linked_pod(None, "new", "svc"),
        lambda: client.get_linked_pod(*USER),
        lambda: client.get_linked_pod_in_cache_or_if_persist(*USER),
        lambda: client.get_linked_pod_not_cache(*USER),
        lambda: client.get_linked_in_cache(*USER),
        lambda: client.cache_expired(*USER),
        lambda: client.set_cache(*USER, 0),
        lambda: client.get_link_service(None, "u1"),
        lambda: client.batch_get_linked_pod(None, ["u1"], "svc"),
        lambda: client.set_linked_pod_if_absent(*USER, 0),
        lambda: client.submit("compute_linked_pod", *USER),
        lambda: client.stats(),
        lambda: client.aclose(),
        lambda: server.start(),
        lambda: server.stop(),
        lambda: server.set_load_state(1),
        lambda: server.get_load_state(),
        lambda: server.set_routing_state("READY"),
        lambda: server.get_routing_state(),
        lambda: server.set_linked_pod(*USER, 0),
        lambda: server.try_set_linked_pod(*USER, 0),
        lambda: server.remove_linked_pod(*USER),
        lambda: server.remove_linked_pod_with_id(*USER, 0, 0),
        lambda: server.holds_lease,
        lambda: server.incarnation,
        lambda: server.stats(),
        lambda: store.ping(),
        lambda: store.aclose(),
        lambda: podlink.ClientDriver(store),
        lambda: podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 1)),
    ]
    for call in calls:
        refused(call)
in_child(child)
""",
    "what is made in the child works": """
in_child(lambda: asyncio.run(makes_its_own(3)))
""",
    "a child of a child": """
def child():
    asyncio.run(makes_its_own(3))
    own = podlink.ClientDriver(podlink.Store(url))
    own.submit("get_linked_pod", *USER).result(10)
    def grandchild():
        refused(lambda: own.get_linked_pod(*USER))
        refused(lambda: client.get_linked_pod(*USER))
        asyncio.run(makes_its_own(4))
    in_child(grandchild)
    own.submit("get_linked_pod", *USER).result(10)
in_child(child)
""",
    "dropping the parent's objects in the child": """
def child():
    global client, server, store
    client = server = store = None
    gc.collect()
    asyncio.run(makes_its_own(3))
in_child(child)
""",
    "forking while a loop runs": """
async def main():
    in_child(lambda: refused(lambda: client.get_linked_in_cache(*USER)))
    assert await client.get_linked_pod_not_cache(*USER) == 0
asyncio.run(main())
""",
    "a child that makes no use of podlink": """
in_child(lambda: None)
""",
    "multiprocessing": """
def work(pod):
    try:
        client.get_linked_in_cache(*USER)
    except ForkedProcessError:
        asyncio.run(makes_its_own(pod))
        return "made its own"
context = multiprocessing.get_context("fork")
with context.Pool(2) as pool:
    assert pool.map(work, [3, 4, 5], chunksize=1) == ["made its own"] * 3
    pool.close()
    pool.join()
process = context.Process(target=work, args=(6,))
process.start()
process.join(30)
assert process.exitcode == 0, process.exitcode
""",
    "forking in the middle of everything": """
# Calls under way, errors being logged, callbacks being called: a lock that some thread holds at
# the moment of the fork is never released in the child.
def choose(uid, candidates):
    raise ValueError("so that there is something to log")
noisy = podlink.ClientDriver(store, config=podlink.ClientConfig(strategy=choose, cache_ttl=0))
leave = threading.Event()
def work():
    at = 0
    while not leave.is_set():
        at += 1
        futures = [noisy.submit("compute_linked_pod", None, f"u{at}-{n}", "svc") for n in range(20)]
        assert [future.result(30) for future in futures] == [0] * 20
import logging
logging.disable()  # not a test of logging's own locks
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
try:
    for round in range(25):
        in_child(lambda: asyncio.run(makes_its_own(round)))
finally:
    leave.set()
    for thread in threads:
        thread.join()
""",
}

EPILOGUE = """
asyncio.run(still_works())
print("well")
"""


@pytest.mark.parametrize("title", BODIES)
@pytest.mark.parametrize("kind", ["memory", "valkey"])
def test_a_fork(valkey_server: Server, kind: str, title: str) -> None:
    valkey_server.flush()
    url = valkey_server.url if kind == "valkey" else "memory://"
    assert run_program(PRELUDE + BODIES[title] + EPILOGUE, url) == "well\n"


def test_the_child_does_not_speak_on_the_parents_connection(
    server_factory: ServerFactory,
) -> None:
    # With TLS a child that dropped the connection in the regular way would end it for both.
    server = server_factory("redis7", tls=True)
    assert server.tls is not None
    url = f"{server.url}?ca_file={server.tls.ca}"
    body = BODIES["dropping the parent's objects in the child"] + "stats = store._core\n"
    assert run_program(PRELUDE + body + EPILOGUE, url) == "well\n"
    assert server.client().info("stats")["total_connections_received"] < 10


def test_a_named_memory_store_is_not_shared_with_a_child() -> None:
    # The child has a copy of the parent's memory. Had it the same links, two processes would
    # own one user.
    body = """
def child():
    own = podlink.ClientDriver(podlink.Store(url))
    assert own.submit("get_linked_pod", *USER).result(10) is None
in_child(child)
"""
    assert run_program(PRELUDE + body + EPILOGUE, "memory://shared") == "well\n"
