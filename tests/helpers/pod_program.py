"""One pod as a program: `python -m helpers.pod_program URL SERVICE INDEX CONFIG`.

It prints its incarnation once it is alive, and stops when its standard input ends: also when the
test that started it has died.
"""

import asyncio
import json
import sys

import podlink


async def _main(url: str, service: str, index: str, config: str) -> None:
    loop = asyncio.get_running_loop()
    store = podlink.Store(url)
    pod = podlink.ServerInfo("default", service, int(index))
    figures = podlink.ServerConfig(**json.loads(config))
    async with podlink.ServerDriver(store, pod, figures) as server:
        print(server.incarnation, flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
