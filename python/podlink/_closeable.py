"""Objects that are closed by the block that they were opened with."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["Closeable"]


class Closeable:
    """An async context manager that calls ``aclose`` at the end of its block."""

    __slots__ = ()

    async def aclose(self) -> None:
        """Ends what the object does. A second call does nothing."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
