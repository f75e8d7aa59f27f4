"""One pod as a program that answers questions: `python -m helpers.talking_pod URL INDEX POD_UID`.

Each line on standard input is a question, each line on standard output the answer, in JSON.
"""

import asyncio
import json
import sys
from typing import Any

import podlink
from helpers.pods import NAMESPACE, QUICK, SERVICE


async def _answer(server: podlink.ServerDriver, lost: list[bool], question: list[Any]) -> Any:
    match question:
        case ["own", uid]:
            return await server.set_linked_pod(None, uid, SERVICE, server.server_info.pod_index)
        case ["status"]:
            return {
                "holds_lease": server.holds_lease,
                "incarnation": server.incarnation,
                "owned": server.stats()["owned_users"],
                "lost": len(lost),
            }
    return None


async def _main(url: str, index: str, pod_uid: str) -> None:
    loop = asyncio.get_running_loop()
    info = podlink.ServerInfo(NAMESPACE, SERVICE, int(index), pod_uid=pod_uid)
    lost: list[bool] = []
    async with podlink.Store(url) as store:
        server = podlink.ServerDriver(store, info, QUICK)
        server.on_lease_lost(lambda: lost.append(True))
        await server.start()
        print(json.dumps(server.incarnation), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                answer = await _answer(server, lost, json.loads(line))
            except podlink.PodlinkError as error:
                answer = {"error": error.code}
            print(json.dumps(answer), flush=True)
        await server.stop(drain="keep")


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
