"""Which paths a Rust file names: the contract tests of the rooms read them.

Not a parser of Rust. It drops comments and literals, writes out `use` trees, resolves `self` and
`super` from the module that they stand in, and collects every `a::b` that is left.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# What is text and not code, in the order in which it has to be tried. A lifetime such as 'a has no
# closing quote and is left alone.
_NOT_CODE = re.compile(
    r"""
      //[^\n]*                              # a comment to the end of the line
    | /\*.*?\*/                             # a block comment
    | \b[bc]?r(\#*)".*?"\1                  # a raw string
    | (?:\b[bc])?"(?:[^"\\]|\\.)*"           # a string
    | (?:\bb)?'(?:[^'\\\n]|\\[^'\n]+|\\')'   # a character or a byte
    """,
    re.VERBOSE | re.DOTALL,
)
_USE = re.compile(r"\buse\s+([^;]+);")
_EXTERN_CRATE = re.compile(r"\bextern\s+crate\s+(\w+)")
_PATH = re.compile(r"(?<![\w:])(?:::\s*)?((?:\w+\s*::\s*)+\w+)")
_MODULE = re.compile(r"^(?:self|super)\b")
# `mod tests {` with its attributes, which say whether it is compiled for tests only.
_INLINE_MODULE = re.compile(r"((?:#\[[^\]]*\]\s*)*)(?:pub\b(?:\([^)]*\))?\s*)?\bmod\s+(\w+)\s*\{")
_BRACE = re.compile(r"[{}]")
_FOR_TESTS = re.compile(r"#\[cfg\((?:all\()?test\b")


class NamedPaths(NamedTuple):
    """The paths that a file names, such as `redis::cmd` or `crate::driver::Client`.

    Attributes:
        code: those in its code.
        tests: those only in its modules that are compiled for tests only.
    """

    code: set[str]
    tests: set[str]


def named_paths(file: Path, source_root: Path) -> NamedPaths:
    """Every path that the file names."""
    code = code_of(file)
    here = module_of(file, source_root)
    modules = list(_inline_modules(code))
    # Blanked and not cut, so that every position stays what it is.
    without_uses = _USE.sub(lambda use: " " * len(use[0]), code)
    found = [(use.start(), path) for use in _USE.finditer(code) for path in _written_out(use[1])]
    for pattern, text in ((_PATH, without_uses), (_EXTERN_CRATE, code)):
        found += [(name.start(), name[1]) for name in pattern.finditer(text)]
    named = NamedPaths(set(), set())
    for position, path in found:
        around = [module for module in modules if position in module.span]
        in_tests = any(module.for_tests for module in around)
        resolved = _resolved(path, [*here, *(module.name for module in around)])
        (named.tests if in_tests else named.code).add(resolved)
    return NamedPaths(named.code, named.tests - named.code)


def code_of(file: Path) -> str:
    """The file without comments and literals; each line keeps its number."""

    def blank(found: re.Match[str]) -> str:
        return " " + "\n" * found[0].count("\n")

    return _NOT_CODE.sub(blank, file.read_text())


def module_of(file: Path, source_root: Path) -> list[str]:
    """Where a file's items live: `src/rpc/server.rs` is ["rpc", "server"]."""
    parts = list(PurePosixPath(file.relative_to(source_root)).with_suffix("").parts)
    return parts[:-1] if parts[-1] in {"mod", "lib"} else parts


class _InlineModule(NamedTuple):
    name: str
    span: range
    for_tests: bool


def _inline_modules(code: str) -> Iterator[_InlineModule]:
    """The modules written out in this code, the outer before the inner."""
    for found in _INLINE_MODULE.finditer(code):
        depth, end = 1, len(code)
        for brace in _BRACE.finditer(code, found.end()):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                end = brace.start()
                break
        yield _InlineModule(found[2], range(found.end(), end), bool(_FOR_TESTS.search(found[1])))


def _written_out(tree: str) -> Iterator[str]:
    """`a::{b, c::{d as e}}` as `a::b` and `a::c::d`."""
    tree = tree.strip()
    head, brace, rest = tree.partition("{")
    if not brace:
        yield re.split(r"\s+as\s+", tree)[0].strip().lstrip(":").strip()
        return
    for branch in _split(rest.rpartition("}")[0]):
        for path in _written_out(branch):
            yield (head + path).strip().lstrip(":").strip()


def _split(branches: str) -> Iterator[str]:
    """Split at the commas that are not inside braces."""
    depth = start = 0
    for position, letter in enumerate(branches):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            yield branches[start:position]
            start = position + 1
    if branches[start:].strip():
        yield branches[start:]


def _resolved(path: str, here: list[str]) -> str:
    path = re.sub(r"\s+", "", path)
    if not _MODULE.match(path):
        return path
    module = list(here)
    parts = path.split("::")
    while parts and parts[0] in {"self", "super"}:
        if parts.pop(0) == "super":
            module = module[:-1]
    return "::".join(["crate", *module, *parts])
