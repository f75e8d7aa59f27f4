"""A real Prometheus server that scrapes what a test shows it.

with PrometheusServer(folder, ["127.0.0.1:9464"]) as prometheus:
    prometheus.query("up")
"""

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from helpers.wait import eventually

_NOT_THERE = """\
There is no {name} to test with. To get it:
  Debian, Ubuntu:  sudo apt-get install prometheus
  macOS:           brew install prometheus"""

_SERIES = re.compile(r"\bpodlink_\w+")


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`; without it the tests fail, they do not skip."""
    found = shutil.which(name)
    assert found, _NOT_THERE.format(name=name)
    return found


def promtool(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return subprocess.run(
        [tool("promtool"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def series_of(expression: str) -> set[str]:
    """The series that an expression names; those of recording rules are others'."""
    # A recording rule's name has colons around the metric's.
    alone = re.sub(r"\w+:podlink_\w+:\w+", "", expression)
    return set(_SERIES.findall(alone))


class PrometheusServer:
    """A server with these rules that scrapes these addresses once a second."""

    def __init__(self, folder: Path, targets: Sequence[str], rules: Path | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._url = f"http://{address}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [] if rules is None else [str(rules)],
            "scrape_configs": [
                {"job_name": "game", "static_configs": [{"targets": list(targets)}]},
            ],
        }
        file = folder / "prometheus.yml"
        file.write_text(json.dumps(config))  # JSON is YAML, too
        self._log = (folder / "prometheus.log").open("w+")
        self._process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        eventually(self._is_ready, within=60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now."""
        answer: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return answer

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """Every target with how its last scrape went."""
        targets: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return targets

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._said()
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _get(self, what: str, **query: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]
