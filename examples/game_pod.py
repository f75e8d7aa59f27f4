"""A complete pod of a stateful game service: identity, load, users, probes, and a clean stop.

Run one per StatefulSet replica: `python examples/game_pod.py`. It reads the pod's identity from the
variables that Kubernetes sets (POD_NAME, POD_NAMESPACE, POD_UID) and the store's URL from
PODLINK_STORE.
"""

import asyncio
import logging
import os
import signal

import podlink

log = logging.getLogger("game")

USERS: dict[str, dict[str, int]] = {}
"""The state that the game holds in memory, by uid."""


async def save(user: podlink.Ownership) -> None:
    """Writes a user's state to the game's database, fenced by ``user.token`` (docs/fencing.md)."""
    USERS.pop(user.uid, None)  # a real game writes to its database first


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: podlink.ServerDriver
) -> None:
    """Answers the probes, without the store: its outage must not restart a single pod."""
    request = await reader.readline()
    # Ready means: route requests to this pod. A pod that still waits for its lease is not ready.
    ready = server.holds_lease and await server.get_routing_state() == podlink.RoutingState.READY
    status = "200 OK" if ready or not request.startswith(b"GET /readyz") else "503 Not Ready"
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    await writer.drain()
    writer.close()


async def main() -> None:
    """Runs until SIGTERM, then drains within the grace period of Kubernetes."""
    info = podlink.ServerInfo.from_env()
    store = podlink.Store(os.environ.get("PODLINK_STORE", "memory://"))
    server = podlink.ServerDriver(
        store, info, podlink.ServerConfig.from_env(), load=lambda: len(USERS)
    )

    # After a save that has ended well the user is released; after one that raised it is not.
    server.on_drain(save)

    @server.on_ownership_lost
    def lost(user: podlink.Ownership, reason: str) -> None:
        # The user may be on another pod already: nothing of this state may be written any more.
        USERS.pop(user.uid, None)
        log.warning("lost a user: %s", reason)

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    probes = await asyncio.start_server(
        lambda reader, writer: answer(reader, writer, server),
        port=int(os.environ.get("PROBE_PORT", "8080")),
    )
    await server.start()
    log.info("pod %d serves as incarnation %s", info.pod_index, server.incarnation)

    await stopping.wait()
    report = await server.stop(deadline=25.0)
    log.info("drained: %s", report)
    probes.close()
    await store.aclose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
