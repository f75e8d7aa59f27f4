"""The event loops that programs bring along."""

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop


class WithoutReaders(asyncio.SelectorEventLoop):
    """A loop that cannot watch descriptors, like the Proactor loop and some of GUI toolkits."""

    def add_reader(self, *_arguments: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    def remove_reader(self, fd: Any) -> bool:
        raise NotImplementedError


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "without readers": WithoutReaders,
}
