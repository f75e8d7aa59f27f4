"""Which paths a Rust file names: the contract tests of the rooms read them.

Not a parser of Rust. It drops comments and literals, writes out `use` trees, resolves `self` and
`super` from where the file lies, and collects every `a::b` that is left.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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


def named_paths(file: Path, source_root: Path) -> set[str]:
    """Every path that the file names, such as `redis::cmd` or `crate::driver::Client`."""
    code = code_of(file)
    uses = [tree for found in _USE.findall(code) for tree in _written_out(found)]
    inline = _PATH.findall(_USE.sub(";", code))
    here = module_of(file, source_root)
    return {_resolved(path, here) for path in [*uses, *inline, *_EXTERN_CRATE.findall(code)]}


def code_of(file: Path) -> str:
    """The file without comments and literals; each line keeps its number."""

    def blank(found: re.Match[str]) -> str:
        return " " + "\n" * found[0].count("\n")

    return _NOT_CODE.sub(blank, file.read_text())


def module_of(file: Path, source_root: Path) -> list[str]:
    """Where a file's items live: `src/rpc/server.rs` is ["rpc", "server"]."""
    parts = list(PurePosixPath(file.relative_to(source_root)).with_suffix("").parts)
    return parts[:-1] if parts[-1] in {"mod", "lib"} else parts


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
            # In an inline module, such as `mod tests`, `super` is the file itself and this goes
            # one too far up. That may name an item of this room wrongly, never hide another room.
            module = module[:-1]
    return "::".join(["crate", *module, *parts])
