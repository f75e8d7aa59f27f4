"""The manifests under deploy/ are valid, and say what docs/kubernetes.md says of them."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"
MANIFESTS = sorted(file.name for file in DEPLOY.glob("*.yaml") if file.name != "kustomization.yaml")
API_VERSION = "1.34"


def load(name: str) -> Any:
    """The one document of a manifest."""
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_valid_to_the_last_field(name: str) -> None:
    kubernetes_validate.validate(load(name), API_VERSION, strict=True)


def test_the_check_can_fail() -> None:
    manifest = load("statefulset.yaml")
    manifest["spec"]["replicsa"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, API_VERSION, strict=True)


def test_kustomize_installs_every_manifest() -> None:
    assert sorted(load("kustomization.yaml")["resources"]) == MANIFESTS


def test_the_figures_of_a_stop_add_up() -> None:
    pod = load("statefulset.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    stop = 25
    assert pause + stop < pod["terminationGracePeriodSeconds"]


def test_users_of_a_draining_pod_find_it() -> None:
    service = load("service.yaml")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert (
        load("statefulset.yaml")["spec"]["serviceName"] == load("service.yaml")["metadata"]["name"]
    )


def test_a_pod_learns_who_it_is() -> None:
    (container,) = load("statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    fields = {
        each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"]
        for each in container["env"]
        if "fieldRef" in each.get("valueFrom", {})
    }
    assert fields == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
    }


def test_no_probe_reaches_beyond_the_pod() -> None:
    (container,) = load("statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert set(container[kind]["httpGet"]) == {"path", "port"}
