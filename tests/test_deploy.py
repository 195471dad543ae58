"""The compose file and the manifests: what they refer to exists, and they agree with each other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from optillm_hooks.gateway.config_check import problems
from tests.proxy import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
MANIFESTS = {
    document["kind"]: document
    for path in (DEPLOY / "kubernetes").glob("*.yaml")
    for document in yaml.safe_load_all(path.read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]
PAGE = (ROOT / "docs/deployment.md").read_text()
EXPOSED = re.search(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
PORT = int(EXPOSED[1]) if EXPOSED else 0


def mounts(service: str) -> dict[str, str]:
    """Return the places in a container by the paths in the repository that are mounted there."""
    pairs = [volume.split(":")[:2] for volume in SERVICES[service].get("volumes", ())]
    return dict(pairs)


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_mounted_exists(service: str) -> None:
    for source in mounts(service):
        assert (
            (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        )


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_listens_on_loopback_only(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service].get("ports", ()))


def test_every_variable_of_the_compose_file_is_documented() -> None:
    variables = re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text())
    assert variables
    assert not [name for name in variables if f"`{name}`" not in PAGE]


def test_prometheus_reads_the_proxy_and_our_rules() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"proxy:{PORT}"]}]
    folder = Path(mounts("prometheus")["./prometheus/prometheus.yml"]).parent
    rules = [str(folder / name) for name in config["rule_files"]]
    assert rules == [mounts("prometheus")["./prometheus/alerts.yml"]]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    [provider] = yaml.safe_load((provisioning / "dashboards/optillm.yaml").read_text())["providers"]
    dashboard = Path(mounts("grafana")["./grafana/optillm.json"])
    assert str(dashboard.parent) == provider["options"]["path"]
    variables = json.loads((DEPLOY / "grafana/optillm.json").read_text())["templating"]["list"]
    assert variables[0] | {"type": "datasource", "query": source["type"]} == variables[0]


def configurations() -> dict[str, Any]:
    return {
        "compose": yaml.safe_load((DEPLOY / "compose/config.yaml").read_text()),
        "kubernetes": yaml.safe_load(MANIFESTS["ConfigMap"]["data"]["config.yaml"]),
    }


@pytest.mark.parametrize("name", configurations())
def test_a_configuration_has_no_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LITELLM_MASTER_KEY", "OPENAI_API_KEY", "REDIS_HOST"):
        monkeypatch.setenv(variable, "given")
    assert problems(configurations()[name]) == []


def deadline_s(config: dict[str, Any]) -> float:
    """Return the longest that a plan of `config` may take."""
    of_aliases = [m.get("model_info", {}).get("optillm", {}) for m in config["model_list"]]
    every = [*of_aliases, config["litellm_settings"]["optillm_settings"]]
    return max(float(settings["deadline_s"]) for settings in every if settings)


def test_every_plan_may_end_before_its_proxy_is_killed() -> None:
    grace = int(SERVICES["proxy"]["stop_grace_period"].removesuffix("s"))
    stops = int(SERVICES["proxy"]["environment"]["GRACEFUL_SHUTDOWN_TIMEOUT"])
    assert grace > stops > deadline_s(configurations()["compose"])
    env = {each["name"]: each["value"] for each in CONTAINER["env"]}
    drain = int(env["GRACEFUL_SHUTDOWN_TIMEOUT"])
    assert POD["spec"]["terminationGracePeriodSeconds"] > drain
    assert drain > deadline_s(configurations()["kubernetes"])


def test_the_manifests_select_the_deployments_pods() -> None:
    labels = POD["metadata"]["labels"]
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert MANIFESTS[kind]["spec"]["selector"] == {"matchLabels": labels}
    scaled = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled["name"] == MANIFESTS["Deployment"]["metadata"]["name"]


def test_probes_and_ports_are_the_images() -> None:
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": PORT}]
    probes = {
        name: CONTAINER[name]["httpGet"]["path"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert probes == {
        "startupProbe": "/health/liveliness",
        "livenessProbe": "/health/liveliness",
        "readinessProbe": "/health/readiness",
    }


def test_the_pod_has_no_privileges() -> None:
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert (
        f"USER {POD['spec']['securityContext']['runAsUser']}" in (ROOT / "Dockerfile").read_text()
    )
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_variable_of_the_secret_is_documented() -> None:
    config = MANIFESTS["ConfigMap"]["data"]["config.yaml"]
    names = {*re.findall(r"os\.environ/(\w+)", config), "DRAIN_ENDPOINT_TOKEN"}
    [source] = CONTAINER["envFrom"]
    assert f"create secret generic {source['secretRef']['name']}" in PAGE
    assert not [name for name in names if f"--from-literal={name}=" not in PAGE]
