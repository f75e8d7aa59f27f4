"""What README.md and the pages beside it show works as shown.

A block of Python is run if the comment `<!-- test -->` stands before it; it must end well and
print nothing on stderr. A text block right behind it that is marked in the same way, is what it
prints.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.programs import run_program

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
PAGES = (README, *(PROJECT / "docs" / page for page in ("ownership.md", "tracing-and-logs.md")))

_MARKED = re.compile(
    r"^<!-- test -->[ \t]*\n+```python\n(?P<code>.*?)^```[ \t]*$"
    r"(?:\s*^<!-- test -->[ \t]*\n+```(?:text|console)?\n(?P<printed>.*?)^```[ \t]*$)?",
    re.MULTILINE | re.DOTALL,
)


class Example(NamedTuple):
    """A block, the line on which it begins, and what it prints if the page says so."""

    line: int
    code: str
    printed: str | None


def examples(text: str) -> list[Example]:
    """Every block of Python of a page that is marked to be run."""
    return [
        Example(text.count("\n", 0, found.start("code")) + 1, found["code"], found["printed"])
        for found in _MARKED.finditer(text)
    ]


EXAMPLES = examples(README.read_text("utf-8"))
ALL = [
    pytest.param(example, id=f"{page.stem}-line-{example.line}")
    for page in PAGES
    for example in examples(page.read_text("utf-8"))
]


@pytest.mark.parametrize("example", ALL)
def test_an_example_runs(example: Example) -> None:
    printed = run_program(example.code)
    if example.printed is not None:
        assert printed == example.printed


def test_there_is_a_quickstart() -> None:
    assert EXAMPLES, "README.md has no block of Python that is marked with <!-- test -->"
    assert any("compute_linked_pod" in example.code for example in EXAMPLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_mark_is_overlooked(page: Path) -> None:
    text = page.read_text("utf-8")
    found = examples(text)
    printed = sum(example.printed is not None for example in found)
    assert text.count("<!-- test -->") == len(found) + printed > 0


def test_the_reader_of_examples_reads() -> None:
    page = (
        "# Title\n\n<!-- test -->\n```python\nprint(1)\n```\n\nIt prints:\n\n"
        "```python\nnot run\n```\n\n<!-- test -->\n\n```python\nprint(2)\n```\n\n"
        "<!-- test -->\n```text\n2\n```\n"
    )
    assert examples(page) == [Example(5, "print(1)\n", None), Example(17, "print(2)\n", "2\n")]
