"""Every public name says what it does, and what its example shows is true."""

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import podlink

MODULES = sorted(
    f"podlink.{found.name}"
    for found in pkgutil.iter_modules(podlink.__path__)
    if found.name != "_podlink"
)
# `__init__.pyi` has the names, and no list of them.
ALL: list[str] = vars(podlink)["__all__"]
PUBLIC = [name for name in ALL if name != "__version__"]


def undocumented(name: str) -> list[str]:
    """The public name, and those of its public members, that have no docstring of their own."""
    found = getattr(podlink, name)
    missing = [] if (found.__doc__ or "").strip() else [name]
    if not inspect.isclass(found):
        return missing
    for member, value in vars(found).items():
        function = getattr(value, "__func__", value)
        if member.startswith("_") or not (
            inspect.isfunction(function) or isinstance(value, property)
        ):
            continue
        if not (getattr(function, "__doc__", None) or "").strip():
            missing.append(f"{name}.{member}")
    return missing


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring(name: str) -> None:
    assert undocumented(name) == []


@pytest.mark.parametrize("name", ["ClientDriver", "ServerDriver", "Store", "connect"])
def test_what_a_newcomer_meets_first_has_an_example(name: str) -> None:
    assert ">>> " in getattr(podlink, name).__doc__


@pytest.mark.parametrize("name", ["podlink", *MODULES])
def test_the_examples_are_true(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    known = {public: getattr(podlink, public) for public in ALL}
    failed = doctest.testmod(module, optionflags=flags, extraglobs=known)
    assert failed.failed == 0
