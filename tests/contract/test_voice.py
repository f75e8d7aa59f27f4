"""The script that counts old words sees comments and docstrings, and nothing else."""

from pathlib import Path

import pytest

from helpers import voice

RUST = """//! Waits until
//! nobody is left.
/// The `tell` of [`Bell`], `self.audience`, tell_no_more and voice::bell are code.
/// ```
/// let bell = tell();
/// ```
fn bell(audience: &str) -> char {
    let told = "// nobody"; let raw = r#"/* nobody "*/"#; /* the long
    way */
    'b' // a bell's task
}
"""
LUA = """-- It tells the pods.
local tell = '-- nobody' --[[ not
anew ]] local text = [[ -- nobody ]]
"""
PYTHON = '''"""Nobody, says the module."""

told = "nobody"  # ä: whoever reads this


class Bell:
    """A class.

    >>> tell(nobody)
    """

    ear: int = 1
    """Heard, by a field."""
'''


def words(source: str, suffix: str) -> list[tuple[int, str]]:
    return [(place.line, place.word) for place in voice.count(source, suffix).places]


def test_rust_comments() -> None:
    assert words(RUST, ".rs") == [(2, "nobody"), (8, "long way"), (10, "bell")]


def test_lua_comments() -> None:
    assert words(LUA, ".lua") == [(1, "tells"), (3, "anew")]


def test_python_comments_and_docstrings() -> None:
    assert words(PYTHON, ".py") == [(1, "Nobody"), (3, "whoever"), (13, "Heard")]


def test_only_whole_comment_words_count() -> None:
    counted = voice.count("// storytelling ears-first, year, long\nfn way() {}\n", ".rs")
    assert counted == voice.Count(words=4, places=[])


def test_exit_code_follows_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "src" / "a.rs"
    source.parent.mkdir()
    source.write_text("// nobody\n" + "// one word more than that\n" * 1000)
    assert voice.main(["--root", str(tmp_path)]) == 0
    source.write_text("// nobody, told\n" + "// one word more than that\n" * 1000)
    assert voice.main(["--root", str(tmp_path), "--list"]) == 1
    listed = capsys.readouterr().out
    assert "src/a.rs:1: 'nobody': say " in listed
    assert "2 old words in 5002 comment words: 4.0 per 10,000" in listed


def test_generated_code_is_not_counted(tmp_path: Path) -> None:
    for name in [*voice.GENERATED, "src/proto/mod.rs", "python/a.pyi", "tests/a.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = [path.relative_to(tmp_path).as_posix() for path in voice.files(tmp_path)]
    assert names == ["python/a.pyi", "src/proto/mod.rs"]


def test_every_source_can_be_counted() -> None:
    counts = [voice.count(path.read_text(), path.suffix) for path in voice.files(voice.PROJECT)]
    assert sum(counted.words for counted in counts) > 10_000
