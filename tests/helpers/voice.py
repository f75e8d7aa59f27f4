"""Counts words that plain technical English does not need, in comments and docstrings.

`python tests/helpers/voice.py` prints the rate per 10,000 comment words and fails when it is too
high; `--list` also prints each place, with what to say instead.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Each word (a regular expression, matched as a whole word) with what to say instead. Why: a reader
# must not decode a private vocabulary; a named subject and the field's verb can be searched for.
# Words that are good English in most sentences (line, way, live, figure) cannot be listed.
OLD_WORDS = {
    "nobody|no one": "name the subject: no caller, no pod, no task",
    "somebody|someone": "name the subject: the caller, a subscriber, a client",
    "everybody|everyone": "name the subjects: all pods, all clients",
    "whoever|whomever": "name the subject: the caller, the reader",
    "those who|he who": "name the subject: callers that, clients that",
    "anew|afresh": "again, from scratch, reset",
    "hearken|hears?|heard": "receives, is notified, gets",
    "tells?|told": "notifies, publishes, returns, calls the hook",
    "audiences?|ears?": "listener, subscriber, push handler",
    "bells?": "waker",
    "crowds?": "batch, burst",
    "exchanges?": "batch, request",
    "long way": "slow path",
    "witness|witnesses": "error capture, proof",
    "doors?": "acceptor, channel state",
    "manners?": "effect, idempotency",
    "set aside|sets aside": "eject",
    "crews?": "thread pool",
    "seats?": "candidate",
    "sheets?": "snapshot of the metrics",
    "departures?": "eviction",
}

LIMIT = 3.0
PER_WORDS = 10_000
PROJECT = Path(__file__).parents[2]
SOURCES = ("src/**/*.rs", "src/**/*.lua", "python/**/*.py", "python/**/*.pyi")
GENERATED = ("src/proto/podlink.v1.rs",)

_OLD = {
    re.compile(rf"(?<![\w-])(?:{words})(?![\w-])".replace(" ", r"\s+"), re.IGNORECASE): instead
    for words, instead in OLD_WORDS.items()
}
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")

# Comments are in the group; the other alternatives are literals, which may contain a marker.
_RUST = re.compile(
    r"""
      (?P<comment> //[^\n]* | /\*.*?\*/ )
    | \b[bc]?r(?P<hashes>\#*)".*?"(?P=hashes)
    | (?:\b[bc])?"(?:[^"\\]|\\.)*"
    | (?:\bb)?'(?:[^'\\\n]|\\[^'\n]+|\\')'
    """,
    re.VERBOSE | re.DOTALL,
)
_LUA = re.compile(
    r"""
      (?P<comment> --\[\[.*?\]\] | --[^\n]* )
    | \[\[.*?\]\]
    | "(?:[^"\\\n]|\\.)*"
    | '(?:[^'\\\n]|\\.)*'
    """,
    re.VERBOSE | re.DOTALL,
)
_MARKER = re.compile(r"^[ \t]*(?://[/!]?|--|\#)", re.MULTILINE)
# Code inside of a comment: fenced blocks, doctests, code spans, identifiers, paths and calls.
_CODE = re.compile(
    r"""
      ```.*?```
    | ^[ \t]*(?:>>>|\.\.\.)[^\n]*
    | `[^`\n]+`
    | \w*(?:_|::|\w[./]\w)[\w./:]*\w
    | \w+\(\)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


class Place(NamedTuple):
    """One use of an old word."""

    line: int
    word: str
    instead: str


class Count(NamedTuple):
    """What one source contains."""

    words: int
    places: list[Place]


def count(source: str, suffix: str) -> Count:
    """The number of comment words in a source, and its old words."""
    prose = _prose(source, suffix)
    places = [
        Place(prose.count("\n", 0, found.start()) + 1, " ".join(found[0].split()), instead)
        for pattern, instead in _OLD.items()
        for found in pattern.finditer(prose)
    ]
    return Count(len(_WORD.findall(prose)), sorted(places))


def _prose(source: str, suffix: str) -> str:
    """The source with all code masked, so that lines and columns stay as they are."""
    masked = [letter if letter.isspace() else "|" for letter in source]
    for start, end in _blocks(source, suffix):
        comment = _MARKER.sub(lambda found: " " * len(found[0]), source[start:end])
        masked[start:end] = _CODE.sub(lambda found: re.sub(r"\S", "|", found[0]), comment)
    return "".join(masked)


def _blocks(source: str, suffix: str) -> list[tuple[int, int]]:
    """Comments with only white space between them are one: a code example has many lines."""
    blocks: list[tuple[int, int]] = []
    for start, end in sorted(_comments(source, suffix)):
        if blocks and not source[blocks[-1][1] : start].strip():
            blocks[-1] = (blocks[-1][0], end)
        else:
            blocks.append((start, end))
    return blocks


def _comments(source: str, suffix: str) -> Iterator[tuple[int, int]]:
    if suffix in {".py", ".pyi"}:
        yield from _python_comments(source)
        return
    for found in (_LUA if suffix == ".lua" else _RUST).finditer(source):
        if found["comment"] is not None:
            yield found.span("comment")


def _python_comments(source: str) -> Iterator[tuple[int, int]]:
    """Comments, and strings that stand alone: docstrings of modules, classes, functions, fields."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            start = starts[token.start[0] - 1] + token.start[1]
            yield start, start + len(token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text, end_line = node.value, node.value.end_lineno
            if isinstance(text.value, str) and end_line and text.end_col_offset is not None:
                yield (
                    starts[text.lineno - 1] + _column(lines[text.lineno - 1], text.col_offset),
                    starts[end_line - 1] + _column(lines[end_line - 1], text.end_col_offset),
                )


def _column(line: str, offset: int) -> int:
    """The column of an offset in bytes: `ast` counts bytes of UTF-8."""
    return len(line.encode()[:offset].decode())


def files(root: Path) -> list[Path]:
    """The sources that are counted; generated files are not."""
    generated = {root / name for name in GENERATED}
    found = {path for pattern in SOURCES for path in root.glob(pattern)}
    return sorted(found - generated)


def main(arguments: list[str] | None = None) -> int:
    """Print the rate, and return 1 if it is too high."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print each place")
    parser.add_argument("--root", type=Path, default=PROJECT, help="the project's folder")
    given = parser.parse_args(arguments)
    words = uses = 0
    for path in files(given.root):
        counted = count(path.read_text(), path.suffix)
        words += counted.words
        uses += len(counted.places)
        if given.list:
            for place in counted.places:
                name = path.relative_to(given.root)
                print(f"{name}:{place.line}: {place.word!r}: say {place.instead}")
    rate = uses * PER_WORDS / max(words, 1)
    print(f"{uses} old words in {words} comment words: {rate:.1f} per {PER_WORDS:,}")
    return int(rate >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
