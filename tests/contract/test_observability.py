"""The Prometheus rules and the Grafana dashboard under deploy/ are valid, and tested."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.prometheus import promtool, series_of

DEPLOY = Path(__file__).parents[2] / "deploy" / "observability"


def load(name: str) -> Any:
    """A file of the folder."""
    text = (DEPLOY / name).read_text("utf-8")
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    return [rule for group in load("rules.yml")["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Every panel of the dashboard that shows something."""
    return [panel for panel in load("dashboard.json")["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """What the panels ask for."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def tried(folder: Path, groups: Any) -> str:
    """What promtool says of these rules, tried with the tests."""
    (folder / "rules.yml").write_text(yaml.safe_dump(groups))
    (folder / "rule_tests.yml").write_text((DEPLOY / "rule_tests.yml").read_text("utf-8"))
    ended = promtool("test", "rules", "rule_tests.yml", cwd=folder)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml")]
)
def test_promtool_finds_them_valid(arguments: tuple[str, ...]) -> None:
    ended = promtool(*arguments, cwd=DEPLOY)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    ended = promtool("test", "rules", "rule_tests.yml", cwd=DEPLOY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for test in load("rule_tests.yml")["tests"]:
        quiet, fires = test["alert_rule_test"]
        assert test["name"] == quiet["alertname"] == fires["alertname"]
        assert "exp_alerts" not in quiet
        assert len(fires["exp_alerts"]) == 1
    tested = [test["name"] for test in load("rule_tests.yml")["tests"]]
    assert tested == [rule["alert"] for rule in rules() if "alert" in rule]


@pytest.mark.parametrize("expression", ["vector(1) < 0", "vector(1)"])
def test_an_alert_that_never_or_always_fires_is_noticed(tmp_path: Path, expression: str) -> None:
    wrong = load("rules.yml")
    alerts = [rule for group in wrong["groups"] for rule in group["rules"] if "alert" in rule]
    for alert in alerts:
        alert["expr"] = expression
    complaints = tried(tmp_path, wrong)
    for alert in alerts:
        assert f"alertname: {alert['alert']}," in complaints


def test_every_panel_asks_for_something_that_prometheus_understands(tmp_path: Path) -> None:
    asked = [each.replace("$__rate_interval", "5m") for each in expressions()]
    rules = [{"record": f"panel:{at}", "expr": expr} for at, expr in enumerate(asked)]
    (tmp_path / "panels.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})
    )
    ended = promtool("check", "rules", "panels.yml", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_dashboard_answers_four_questions() -> None:
    dashboard = load("dashboard.json")
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == [
        "Are users routed?",
        "How fast?",
        "From which pods are they moving?",
        "Is the store or a peer the cause?",
    ]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["targets"]
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert variables == {"datasource", "job", "namespace", "service"}


def test_a_panel_that_shows_what_a_rule_records_names_a_rule_that_is_there() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for name in recorded:
        users = [rule["expr"] for rule in rules() if rule.get("record") != name]
        assert any(name in each for each in [*users, *expressions()]), f"nobody looks at {name}"
    for expression in expressions():
        if not series_of(expression):
            assert any(name in expression for name in recorded), expression
