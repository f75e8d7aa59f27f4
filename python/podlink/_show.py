"""How the command writes: in columns, each thing on one line, and without passwords."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["columns", "hide_credentials", "one_line"]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def one_line(text: str) -> str:
    """The text without line ends: text of a store or a user must not drive a terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def hide_credentials(text: str) -> str:
    """The text without what may be a password: before an ``@``, or in a ``password=``."""
    # People forget to quote: a password may hold blanks, slashes and more signs of its own.
    text = re.sub(r"(?<=//).*@", "***@", text, flags=re.DOTALL)
    return re.sub(r"(?<=password=).*", "***", text, flags=re.DOTALL)
