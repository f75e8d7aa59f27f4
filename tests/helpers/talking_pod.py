"""One pod as a program that answers questions: `python -m helpers.talking_pod URL INDEX POD_UID`.

Each line on standard input is a question, each line on standard output the answer, in JSON.
"""

import asyncio
import json
import sys
from typing import Any

import podlink
from helpers.pods import NAMESPACE, QUICK, SERVICE


async def _answer(server: podlink.ServerDriver, told: list[str], question: list[Any]) -> Any:
    match question:
        case ["own", uid]:
            return (await server.claim(None, uid)).token
        case ["token", uid]:
            user = server.ownership(None, uid)
            return None if user is None else user.token
        case ["release", uid]:
            return await server.remove_linked_pod(None, uid, SERVICE)
        case ["status"]:
            return {
                "holds_lease": server.holds_lease,
                "incarnation": server.incarnation,
                "owned": sorted(server.owned_users()),
                "told": told,
            }
    return None


async def _main(url: str, index: str, pod_uid: str) -> None:
    loop = asyncio.get_running_loop()
    info = podlink.ServerInfo(NAMESPACE, SERVICE, int(index), pod_uid=pod_uid)
    told: list[str] = []
    async with podlink.Store(url) as store:
        server = podlink.ServerDriver(store, info, QUICK)
        server.on_lease_suspended(lambda _reason: told.append("suspended"))
        server.on_lease_resumed(lambda _reason: told.append("resumed"))
        server.on_lease_lost(lambda reason: told.append(reason))
        server.on_ownership_lost(lambda user, reason: told.append(f"{user.uid} {reason}"))
        await server.start()
        print(json.dumps(server.incarnation), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                answer = await _answer(server, told, json.loads(line))
            except podlink.PodlinkError as error:
                answer = {"error": error.code}
            print(json.dumps(answer), flush=True)
        await server.stop(drain="keep")


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
