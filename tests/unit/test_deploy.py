"""What stands in deploy/: every metric, label and setting in it is one that the service has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.e2e.kit import ROOT, draw_cells, to_png

DEPLOY = ROOT / "deploy"
# Labels that Prometheus itself puts on every series.
OWN_LABELS = {"instance", "job"}


@pytest.fixture(scope="module")
def scraped(tiny_weights: Path) -> dict[str, set[str]]:
    """Names of samples with the names of their labels, after a bit of everything."""
    key = SecretStr("0123456789abcdef")
    settings = Settings(weights_dir=tiny_weights, device="cpu", reload_poll_s=0, admin_key=key)
    with TestClient(create_app(settings)) as client:
        for data in (to_png(draw_cells(60, 80)), b"junk"):
            client.post("/segment", files={"file": ("x.png", data)})
            client.post("/segment/batch", files=[("files", ("x.png", data))])
        client.post("/models/best_model/reload", headers={"X-API-Key": key.get_secret_value()})
        service = client.app.state.service  # type: ignore[attr-defined]  # Starlette types it as any ASGI application
        service.metrics.settle("GET", "", None, 0.0, type("Notes", (), {"stages": (), "reason": ""})())
        text = client.get("/metrics").text
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def find_expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]

    def search(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for name, value in node.items():
                if name in ("expr", "definition") and isinstance(value, str):
                    yield value
                else:
                    yield from search(value)
        elif isinstance(node, list):
            for item in node:
                yield from search(item)

    for expression in search(json.loads((DEPLOY / "grafana-dashboard.json").read_text())):
        yield "dashboard", expression


def test_every_metric_and_label_is_one_that_a_scrape_has(scraped: dict[str, set[str]]) -> None:
    expressions = list(find_expressions())
    assert len(expressions) > 30
    used = set()
    for where, expression in expressions:
        metrics = set(re.findall(r"\b(maskwell_\w+)", expression))
        assert metrics or "up{" in expression, (where, expression)
        assert metrics <= set(scraped), (where, metrics - set(scraped))
        used |= metrics
        labels = {label for name in metrics for label in scraped[name]} | OWN_LABELS
        for name, matchers in re.findall(r"\b(maskwell_\w+)\{([^}]*)\}", expression):
            found = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert found <= scraped[name] | OWN_LABELS, (where, name, found)
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= labels, (where, expression)
    assert len(used) > 20


def test_the_documentation_names_every_metric_and_no_other(scraped: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    named = set()
    for row in re.findall(r"^.*maskwell_.*$", text, re.MULTILINE):
        first = ""
        for name in re.findall(r"(maskwell_\w+|`_\w+`)", row):
            if name.startswith("maskwell_"):
                first = name
                named.add(name)
            else:  # `maskwell_queue_pixels`, `_tiles`
                named.add(f"{first.split('_')[0]}_{first.split('_')[1]}{name.strip('`')}")
    ours = [name for name in scraped if name.startswith("maskwell_") and not name.endswith("_created")]
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in ours}
    assert named == families


def test_alerts_say_what_to_do_and_have_a_severity() -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    fired = {rule["alertname"] for case in cases for rule in case["alert_rule_test"] if rule["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alerts()}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not here")
@pytest.mark.parametrize(
    "command",
    ["check rules alerts.yml", "test rules alerts_test.yml", "check config --syntax-only prometheus.yml"],
)
def test_prometheus_itself_agrees(command: str) -> None:
    ended = subprocess.run(["promtool", *command.split()], cwd=DEPLOY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_compose_gives_a_stopped_service_the_time_that_it_takes_to_drain() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    settings = Settings()
    for name in ("maskwell", "maskwell-cpu"):
        grace_s = int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > settings.drain_grace_s + settings.drain_deadline_s


def test_compose_hands_on_every_setting_but_where_it_listens_and_where_weights_are() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    handed_on = {f"MASKWELL_{name.upper()}" for name in set(Settings.model_fields) - {"host", "port", "weights_dir"}}
    for name in ("maskwell", "maskwell-cpu"):
        environment = compose["services"][name]["environment"]
        assert set(environment) == handed_on
        assert set(environment.values()) == {None}  # as it is outside; not set where it is not set there


def test_the_dashboard_has_panels_that_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        box = panel["gridPos"]
        cells = {(box["x"] + dx, box["y"] + dy) for dx in range(box["w"]) for dy in range(box["h"])}
        assert box["x"] + box["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_manifest_is_locked_down_and_its_settings_exist() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()))
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    given = {item["name"].removeprefix("MASKWELL_").lower(): item["value"] for item in container["env"]}
    assert set(given) <= set(Settings.model_fields)
    settings = Settings.model_validate(given)
    promised = settings.drain_grace_s + settings.drain_deadline_s
    assert pod["terminationGracePeriodSeconds"] > promised
    assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()


def test_prometheus_scrapes_the_service_with_a_key() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    [job] = config["scrape_configs"]
    assert job["job_name"] == "maskwell"
    assert job["authorization"]["credentials_file"]
