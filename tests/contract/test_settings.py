"""Every setting is defined once, in the core's table; what repeats it says the same.

The table is `src/config/`, exported as `_podlink.config_table()`. The Python configurations stay
written by hand, for type checkers and editors, and so do the tables of README.md and docs/.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest

import podlink
from podlink import _podlink, config
from podlink.config import Setting, settings_table

PROJECT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/cross-namespace.md")

TABLE = [setting for setting in settings_table() if setting.config != "Store"]
LIMITED = [setting for setting in TABLE if setting.least is not None or setting.most is not None]
CONFIGS = sorted({setting.config for setting in TABLE})

# What a field of each kind is annotated with.
ANNOTATIONS = {
    "seconds": config.Duration,
    "seconds_or_none": config.Duration | None,
    "count": int,
    "ratio": float,
    "limit": int | None,
    "flag": bool,
    "text": str,
}


def name_of(setting: Setting) -> str:
    return f"{setting.config}.{setting.name}"


def of(class_name: str) -> dict[str, Setting]:
    """The settings of a configuration, by name."""
    return {setting.name: setting for setting in TABLE if setting.config == class_name}


# --- The Python configurations --------------------------------------------------------------------


def test_each_configuration_has_a_table() -> None:
    public = {name for name in config.__all__ if name.endswith("Config")}
    assert public == set(CONFIGS)


@pytest.mark.parametrize("class_name", CONFIGS)
def test_fields_are_the_settings(class_name: str) -> None:
    written = {each.name: each.default for each in fields(getattr(podlink, class_name))}
    assert written == {name: setting.default for name, setting in of(class_name).items()}
    types = {name: type(default) for name, default in written.items()}
    assert types == {name: type(setting.default) for name, setting in of(class_name).items()}


@pytest.mark.parametrize("setting", TABLE, ids=name_of)
def test_a_field_has_its_type(setting: Setting) -> None:
    hint = get_type_hints(getattr(podlink, setting.config))[setting.name]
    if setting.name == "strategy":
        hint = config.StrategyName  # or a function, which has no name
    if setting.kind == "choice":
        assert hint == Literal[tuple(setting.names)]
        assert list(get_args(hint)) == setting.names
    else:
        assert hint == ANNOTATIONS[setting.kind]


@pytest.mark.parametrize("class_name", CONFIGS)
def test_the_docstring_has_each_setting(class_name: str) -> None:
    found = getattr(podlink, class_name)
    attributes = re.search(r"Attributes:\n(.*?)\n\n", found.__doc__, re.DOTALL)
    assert attributes
    documented = re.findall(r"^ {8}(\w+): ", attributes[1], re.MULTILINE)
    assert documented == [each.name for each in fields(found)]


# --- Limits ---------------------------------------------------------------------------------------


def limits(setting: Setting) -> str:
    """The limits, as an error states them."""
    least, most = (f"{limit:.15g}" for limit in (setting.least or 0.0, setting.most or 0.0))
    if setting.most is None:
        return f"at least {least} {'seconds' if setting.kind == 'seconds' else 'entry'}"
    unit = {"seconds": " seconds", "seconds_or_none": " seconds, or none"}
    return f"{least} to {most}{unit.get(setting.kind, '')}"


def beyond(setting: Setting) -> Iterator[Any]:
    """Values on either side of the limits."""
    assert setting.least is not None
    yield int(setting.least) - 1
    if setting.most is not None:
        yield int(setting.most) + 1
    if setting.kind != "count":
        yield from (float("nan"), float("inf"), float("-inf"))
    if setting.kind.startswith("seconds"):
        yield timedelta(seconds=-1)


@pytest.mark.parametrize("setting", LIMITED, ids=name_of)
def test_a_value_beyond_its_limits_is_refused(setting: Setting) -> None:
    for given in beyond(setting):
        with pytest.raises(podlink.InvalidParameterError) as caught:
            getattr(podlink, setting.config)(**{setting.name: given})
        assert not isinstance(caught.value, podlink.InvalidParameterTypeError)
        details = caught.value.details
        assert (details["parameter"], details["allowed"]) == (setting.name, limits(setting))


WRONG_TYPES: dict[str, list[Any]] = {
    "seconds": ["1", None, True, []],
    "seconds_or_none": ["1", True, []],
    "count": ["1", None, True, 1.5, timedelta(seconds=1)],
    "ratio": ["1", None, True, timedelta(seconds=1)],
    "limit": ["1", True, 1.5, timedelta(seconds=1)],
    "flag": ["true", None, 1],
    "choice": [1, None, True],
    "text": [1, None, True],
}


@pytest.mark.parametrize("setting", TABLE, ids=name_of)
def test_a_value_of_another_type_is_refused(setting: Setting) -> None:
    for given in WRONG_TYPES[setting.kind]:
        with pytest.raises(podlink.InvalidParameterTypeError) as caught:
            getattr(podlink, setting.config)(**{setting.name: given})
        details = caught.value.details
        assert (details["parameter"], details["given"]) == (setting.name, type(given).__name__)


CHOICES = [setting for setting in TABLE if setting.kind == "choice"]


@pytest.mark.parametrize("setting", CHOICES, ids=name_of)
def test_a_choice_is_one_of_its_names(setting: Setting) -> None:
    for name in setting.names:
        assert getattr(podlink, setting.config)(**{setting.name: name})
    with pytest.raises(podlink.InvalidParameterError) as caught:
        getattr(podlink, setting.config)(**{setting.name: "another"})
    details = caught.value.details
    assert (details["parameter"], details["given"]) == (setting.name, '"another"')
    for name in setting.names:
        assert name in details["allowed"]


@pytest.mark.parametrize("setting", TABLE, ids=name_of)
def test_each_setting_has_a_variable(setting: Setting) -> None:
    found = getattr(podlink, setting.config)
    text = "1" if setting.default is None else str(setting.default)
    read = found.from_env({f"PODLINK_{setting.name.upper()}": text})
    assert getattr(read, setting.name) == (1 if setting.default is None else setting.default)


OPTIONAL = [setting for setting in TABLE if setting.kind in ("limit", "seconds_or_none")]


@pytest.mark.parametrize("setting", OPTIONAL, ids=name_of)
def test_a_setting_is_turned_off_by_a_variable(setting: Setting) -> None:
    found = getattr(podlink, setting.config)
    read = found.from_env({f"PODLINK_{setting.name.upper()}": "none"})
    assert getattr(read, setting.name) is None
    assert read == found(**{setting.name: None})


# --- The compiled module --------------------------------------------------------------------------


def test_the_core_takes_all_settings_and_no_others() -> None:
    values: dict[str, Any] = {name: each.default for name, each in of("ClientConfig").items()}
    _podlink.ClientSettings(values)
    with pytest.raises(podlink.InvalidParameterError, match="link_tll"):
        _podlink.ClientSettings(values | {"link_tll": 1.0})
    del values["link_ttl"]
    with pytest.raises(podlink.InvalidParameterError, match="link_ttl must be given"):
        _podlink.ClientSettings(values)


@pytest.mark.parametrize("setting", settings_table(), ids=name_of)
def test_a_meaning_is_a_sentence(setting: Setting) -> None:
    assert setting.meaning[:1].isupper()
    assert setting.meaning.endswith(".")


# --- The pages ------------------------------------------------------------------------------------


def page_rows() -> Iterator[tuple[str, str, str]]:
    """Configuration, setting and default of each row of the pages' tables."""
    for page in PAGES:
        class_name = ""
        for line in (PROJECT / page).read_text("utf-8").splitlines():
            cells = [cell.strip() for cell in line.split(" | ")]
            if not line.startswith("|"):
                class_name = ""
            elif found := re.match(r"\| `(\w+Config)` \| default", line):
                class_name = found[1]
            elif class_name and not line.startswith("|---"):
                names = re.findall(r"`(\w+)`", cells[0])
                # A comma with digits after it is part of a number.
                defaults = re.split(r",(?!\d{3})\s*", cells[1])
                for name, default in zip(names, defaults, strict=True):
                    yield class_name, name, default


def default_in(text: str) -> object:
    """A default, as a page writes it."""
    text = text.strip("`").strip('"')
    number = re.match(r"[\d,.]*\d", text)
    if number is None:
        return {"none": None, "False": False, "True": True}.get(text, text)
    return float(number[0].replace(",", ""))


def as_shown(default: object) -> object:
    """A default of the table, as `default_in` reads it."""
    whole = isinstance(default, int) and not isinstance(default, bool)
    return float(default) if whole else default  # type: ignore[arg-type]


def test_the_pages_show_each_setting_once_with_its_default() -> None:
    shown = [(class_name, name, default_in(default)) for class_name, name, default in page_rows()]
    assert sorted(shown, key=repr) == sorted(
        ((each.config, each.name, as_shown(each.default)) for each in TABLE), key=repr
    )


def test_options_of_the_store_show_their_defaults() -> None:
    store = {setting.name: setting for setting in settings_table() if setting.config == "Store"}
    assert set(store) == {"connect_timeout"}
    (seconds,) = (f"{setting.default:g}" for setting in store.values())
    assert f"`connect_timeout` ({seconds} s)" in (PROJECT / "README.md").read_text("utf-8")
    assert f"``connect_timeout`` (seconds, default {seconds})" in str(podlink.Store.__doc__)
