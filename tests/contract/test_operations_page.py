"""docs/operations.md has a section on each alert, and on no others."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "operations.md"
RULES = PROJECT / "deploy" / "observability" / "rules.yml"


def alerts() -> list[dict[str, Any]]:
    """Every alert of the rules."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def sections() -> dict[str, str]:
    """Headings of the page with what stands below them."""
    parts = re.split(r"^#{2,3} (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    named = [rule["alert"] for rule in alerts()]
    assert len(named) > 10
    assert sorted(named) == sorted(name for name in sections() if name.startswith("Podlink"))


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_a_section_says_what_an_alert_means_and_what_to_do(rule: dict[str, Any]) -> None:
    section = sections()[rule["alert"]]
    assert "**Means**: " in section
    assert "**Do**: " in section
    severity = rule["labels"]["severity"]
    assert severity in section.lower()
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert set(rule["annotations"]) == {"summary", "runbook"}


def test_links_within_the_page_lead_somewhere() -> None:
    anchors = {re.sub(r"[^a-z0-9 ]", "", name.lower()).replace(" ", "-") for name in sections()}
    linked = set(re.findall(r"\]\(#([^)]+)\)", PAGE.read_text("utf-8")))
    assert linked
    assert linked <= anchors
