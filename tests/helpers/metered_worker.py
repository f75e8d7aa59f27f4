"""A worker of a service in prometheus_client's multiprocess mode: URL USER COUNT.

It computes COUNT times, says so, and ends when its input ends; "kill" instead of an end is for
the caller to do.
"""

import asyncio
import sys

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE
from podlink import prometheus


async def main(url: str, user: str, count: int) -> None:
    async with podlink.connect(url, namespace=NAMESPACE, route_info=FRESH) as connection:
        prometheus.register(connection)
        for _ in range(count):
            await connection.client.compute_linked_pod(None, user, SERVICE)
        print("done", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
