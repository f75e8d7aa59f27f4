"""A pod of a stateful game service, whole: identity, load, users, probes, and a clean stop.

Run one per StatefulSet replica: `python examples/game_pod.py`. It reads what Kubernetes tells a pod
(POD_NAME, POD_NAMESPACE, POD_UID) and where the store is (PODLINK_STORE).
"""

import asyncio
import logging
import os
import signal

import podlink

log = logging.getLogger("game")

USERS: dict[str, dict[str, int]] = {}
"""What the game holds in memory: uid → state."""


async def save(uid: str, server: podlink.ServerDriver) -> None:
    """Writes a user's state to the game's database, then lets go of the user."""
    USERS.pop(uid, None)  # a real game writes to its database first
    await server.remove_linked_pod(None, uid, server.server_info.service_name)


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: podlink.ServerDriver
) -> None:
    """The probes. They never ask the store: its outage must not restart a single pod."""
    request = await reader.readline()
    # Ready means: route requests to me. A pod that only waits for its lease is not.
    ready = server.holds_lease and await server.get_routing_state() == podlink.RoutingState.READY
    status = "200 OK" if ready or not request.startswith(b"GET /readyz") else "503 Not Ready"
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    await writer.drain()
    writer.close()


async def main() -> None:
    """Lives until SIGTERM, then drains within the grace period that Kubernetes gives."""
    info = podlink.ServerInfo.from_env()
    store = podlink.Store(os.environ.get("PODLINK_STORE", "memory://"))
    server = podlink.ServerDriver(
        store, info, podlink.ServerConfig.from_env(), load=lambda: len(USERS)
    )

    @server.on_drain
    async def drain(uid: str) -> None:
        await save(uid, server)

    @server.on_lease_lost
    def lost() -> None:
        # Whatever was held under the lease may be on another pod by now.
        USERS.clear()

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
