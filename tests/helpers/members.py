"""What a class of podlink's has, from itself and from podlink's own bases."""

from typing import Any


def own_members(owner: type) -> dict[str, Any]:
    """Members by name; what object or the standard library brings is left out."""
    bases = [base for base in reversed(owner.__mro__) if base.__module__.startswith("podlink")]
    return {name: value for base in bases for name, value in vars(base).items()}
