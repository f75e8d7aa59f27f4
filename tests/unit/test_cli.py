"""The command line without a server: what it accepts, what it refuses, and what it says."""

import argparse
import json
from dataclasses import fields

import pytest

import podlink
from podlink import _options, cli
from podlink._options import Parser, add_settings, config_from, whole_number
from podlink._show import columns, hide_credentials, one_line

CONFIGS = (
    podlink.ClientConfig,
    podlink.GrpcServerConfig,
    podlink.RouteInfoConfig,
    podlink.ServerConfig,
)
MEMORY = ("--store", "memory://")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PODLINK_STORE", "PODLINK_NAMESPACE", "PODLINK_TIMEOUT", "PODLINK_LINK_TTL"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The usage error that these arguments give."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert (exit_.value.code, printed.out) == (2, "")
    return printed.err


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command ends with."""
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("podlink: ")
    return printed.err.removesuffix("\n")


# --- Figures --------------------------------------------------------------------------------------


def test_every_figure_has_an_option_and_a_description() -> None:
    names = {each.name for config in CONFIGS for each in fields(config)}
    assert set(_options.HELP) == names
    parser = Parser()
    add_settings(parser, *(config() for config in CONFIGS))
    help_ = parser.format_help()
    for name in names:
        assert f"--{name.replace('_', '-')} " in help_


@pytest.mark.parametrize("config", CONFIGS)
def test_without_options_and_variables_the_defaults_stand(config: type) -> None:
    for default in (config(), *([config.fast()] if hasattr(config, "fast") else [])):
        assert config_from(default, argparse.Namespace(), {}) == default


def test_an_option_wins_over_the_variable_and_the_variable_over_the_default() -> None:
    parser = Parser()
    add_settings(parser, podlink.ClientConfig(), podlink.RouteInfoConfig())
    environ = {"PODLINK_LINK_TTL": "900", "PODLINK_TIMEOUT": "9", "PODLINK_OVERLOAD_LIMIT": "7"}
    options = parser.parse_args(
        ["--timeout", "0.5", "--strategy", "least_load", "--serve-stale", "true"]
    )
    client = config_from(podlink.ClientConfig(cache_ttl=20.0), options, environ)
    assert (client.link_ttl, client.timeout, client.cache_ttl) == (900.0, 0.5, 20.0)
    assert client.strategy == "least_load"
    route_info = config_from(podlink.RouteInfoConfig(), options, environ)
    assert (route_info.overload_limit, route_info.serve_stale) == (7, True)


def test_figures_are_refused_together_not_one_by_one() -> None:
    # Each of them alone contradicts the other's default.
    options = argparse.Namespace(link_ttl="20")
    client = config_from(podlink.ClientConfig(), options, {"PODLINK_CACHE_TTL": "10"})
    assert (client.link_ttl, client.cache_ttl) == (20.0, 10.0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--timeout", "soon"], "argument --timeout: must be a number, got 'soon'"),
        (["--timeout", ""], "argument --timeout: must be a number, got ''"),
        (["--overload-limit", "1.5"], "--overload-limit: must be a whole number, got '1.5'"),
        (["--strategy", "best"], "argument --strategy: invalid choice: 'best'"),
        (["--lease", "9"], "unrecognized arguments: --lease"),
        (["--time", "9"], "unrecognized arguments: --time"),
        (["another"], "unrecognized arguments: another"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert complaint in refused(capsys, "compute", *MEMORY, "u1", "svc", *arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["remove"], "invalid choice: 'remove'"),
        (["get", "u1", "svc"], "the following arguments are required: --store"),
        (["get", *MEMORY, "u1"], "the following arguments are required: service"),
        (["batch", *MEMORY, "u1"], "the following arguments are required: service"),
        (["services", *MEMORY], "the following arguments are required: uid"),
        (["pods", *MEMORY], "the following arguments are required: service"),
        (["demo", "--pods", "1"], "--pods: must be a whole number from 2 to 100, got '1'"),
        (["demo", "--users", "0"], "--users: must be a whole number from 1 to 1000000, got '0'"),
        (["demo", "--users", "many"], "got 'many'"),
        (["demo", "--json"], "unrecognized arguments: --json"),
    ],
)
def test_a_wrong_command_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert complaint in refused(capsys, *arguments)


def test_whole_numbers_have_ends() -> None:
    read = whole_number(2, 4)
    assert [read("2"), read("4")] == [2, 4]
    for text in ("1", "5", "", "2.5", "x" * 100):
        with pytest.raises(argparse.ArgumentTypeError, match="from 2 to 4, got '"):
            read(text)


# --- Credentials ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:secret@host:6379/0", "redis://***@host:6379/0"),
        ("lost: redis://:secret word@host", "lost: redis://***@host"),
        ("redis://:se@cret/s@host?x=1", "redis://***@host?x=1"),
        ("redis://host?db=1&password=secret&x=secret", "redis://host?db=1&password=***"),
        (
            "redis://host/0 user@example.org",
            "redis://***@example.org",
        ),  # too much, never too little
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_what_may_be_a_password_is_hidden(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "u1", "svc", "redis://:secret@host"],
        ["redis://:secret@host"],
        ["get", "--stor", "redis://:secret@host", "u1", "svc"],
        ["demo", "--pods", "redis://me:secret@host"],
    ],
)
def test_a_misplaced_url_is_not_echoed(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert "secret" not in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "url", ["foo://me:secret@host", "redis://me:secret@host:x", "redis://host?passwort=secret"]
)
def test_a_wrong_url_is_refused_without_its_password(
    capsys: pytest.CaptureFixture[str], url: str
) -> None:
    line = failed(capsys, "get", "--store", url, "u1", "svc")
    assert line.startswith("podlink: INVALID_PARAMETER: url ")
    assert "secret" not in line


def test_the_default_store_is_not_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODLINK_STORE", "redis://me:secret@host")
    for command in ("demo", "get"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
    assert "secret" not in capsys.readouterr().out


# --- Answers --------------------------------------------------------------------------------------


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"podlink {podlink.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "text", "answer"),
    [
        (
            ["get", "u1", "svc"],
            "u1  has no link\n",
            {"namespace": "default", "service": "svc", "uid": "u1", "pod": None},
        ),
        (
            ["batch", "u2", "u1", "u2", "svc"],
            "no link  u2\nno link  u1\n",
            {"namespace": "default", "service": "svc", "pods": {}, "unlinked": ["u2", "u1"]},
        ),
        (
            ["services", "u1"],
            "u1 has no persistent links\n",
            {"namespace": "default", "uid": "u1", "services": {}},
        ),
        (
            ["pods", "svc"],
            "svc has no alive pods\n",
            {"namespace": "default", "service": "svc", "pods": []},
        ),
    ],
)
def test_an_empty_store_has_empty_answers(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str, answer: object
) -> None:
    assert cli.main([*arguments, *MEMORY]) == 0
    assert capsys.readouterr().out == text
    assert cli.main([*arguments, *MEMORY, "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == answer
    assert printed.count("\n") == 1


def test_the_store_and_the_namespace_may_come_from_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODLINK_STORE", "memory://")
    monkeypatch.setenv("PODLINK_NAMESPACE", "prod")
    assert cli.main(["get", "u1", "svc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["namespace"] == "prod"
    assert cli.main(["get", "u1", "svc", "--json", "--namespace", "test"]) == 0
    assert json.loads(capsys.readouterr().out)["namespace"] == "test"


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["compute", "u1", "svc"], "POD_NOT_ROUTABLE: compute_linked_pod: no pod of default/svc"),
        (["get", "", "svc"], "INVALID_PARAMETER: uid must be"),
        (["get", "u\n1", "svc"], "INVALID_PARAMETER: uid must be"),
        (["get", "u\udcff", "svc"], "INVALID_PARAMETER: uid must be"),
        (["get", "u1", "a:b"], "INVALID_PARAMETER: "),
        (["pods", "a:b"], "INVALID_PARAMETER: "),
        (["get", "u1", "svc", "--namespace", "a b"], "INVALID_PARAMETER: "),
        (["get", "u1", "svc", "--timeout", "nan"], "INVALID_PARAMETER: timeout must be"),
        (["get", "u1", "svc", "--timeout=-1"], "INVALID_PARAMETER: timeout must be"),
        (["get", "u1", "svc", "--link-ttl", "5"], "INVALID_PARAMETER: cache_ttl must be at most"),
    ],
)
def test_an_error_is_one_line_with_its_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], start: str
) -> None:
    assert failed(capsys, *arguments, *MEMORY).startswith(f"podlink: {start}")


def test_a_wrong_variable_is_an_error_that_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODLINK_TIMEOUT", "soon")
    line = failed(capsys, "get", "u1", "svc", *MEMORY)
    assert line == "podlink: INVALID_PARAMETER: PODLINK_TIMEOUT must be a number, got 'soon'"


def test_what_others_wrote_cannot_drive_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\nc\u202ed é") == "a\\x1b[2Jb\\nc\\u202ed é"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert columns([("a", "bcd", ""), ("long", "e", "f")]) == ["a     bcd", "long  e    f"]
    assert columns([]) == []
