"""Pods that exist in the store only: their states and leases, written as any other tool would.

    publish(server, range(5000), loads={3: 7})
    withdraw(server, [0])

They renew nothing: their leases end after `lease` seconds.
"""

import json
import time
from collections.abc import Iterable, Mapping
from uuid import UUID

from helpers.pods import NAMESPACE, SERVICE
from helpers.servers import Server


def state_key(service: str = SERVICE, namespace: str = NAMESPACE) -> str:
    """The key of a service's states, and the name of its channel."""
    return f"sf:{{{namespace}:state:{service}}}"


def lease_key(service: str = SERVICE, namespace: str = NAMESPACE) -> str:
    """The key of a service's leases."""
    return f"{state_key(service, namespace)}#lease"


def publish(
    server: Server,
    indexes: Iterable[int],
    *,
    loads: Mapping[int, int] | None = None,
    routing: Mapping[int, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    service: str = SERVICE,
    namespace: str = NAMESPACE,
    lease: float = 60.0,
    gap: float | None = None,
    ago: float = 0.0,
) -> None:
    """Write all that these pods would write; they are READY unless `routing` says otherwise.

    With `ago` they wrote it so many seconds ago, and no pod or client has called since; then `gap`
    is that of a lease of `lease` seconds.
    """
    wrote = time.time() - ago
    deadline, now = int((wrote + lease) * 1_000_000), int(wrote * 1000)
    times = [lease, lease / 2, gap or lease * 0.4] if ago else [60, 60, 60]
    states, leases = {}, {"clk": str(now * 1000)}
    leases["t"] = ":".join(str(int(each * 1_000_000)) for each in times)
    for index in indexes:
        state = {
            "podId": index,
            "state": "READY",
            "loadState": (loads or {}).get(index, 0),
            "routingState": (routing or {}).get(index, "READY"),
            "incarnation": 1,
            "metadata": dict(metadata or {}),
            "updateTime": now,
        }
        states[str(index)] = json.dumps(state)
        leases |= {f"i:{index}": "1", f"d:{index}": str(deadline), f"x:{index}": "0"}
        leases |= {f"b:{index}": f"{index:032x}", f"u:{index}": str(UUID(int=index))}
    with server.client(socket_timeout=30) as client, client.pipeline() as pipeline:
        pipeline.hset(lease_key(service, namespace), mapping=leases)
        pipeline.hset(state_key(service, namespace), mapping=states)
        pipeline.execute()
