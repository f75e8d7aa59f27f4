"""Users as games have them: a prefix and a number of 19 digits that a snowflake server gave out."""

from collections.abc import Iterable

_FIRST = 1_300_000_000_000_000_000
_STEP = 4_194_304 * 37 + 11


def realistic(many: int) -> Iterable[str]:
    """That many different users of 23 characters, made one by one."""
    return map(_name, range(many))


def some(numbers: Iterable[int]) -> list[str]:
    """The users with these numbers."""
    return [_name(number) for number in numbers]


def _name(number: int) -> str:
    return f"usr_{_FIRST + number * _STEP}"
