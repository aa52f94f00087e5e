"""What Prometheus is told, and what the document of the deployment names: all of it exists."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from deployment import CHOICES, GATEWAY_PORT, WORKER_PORT
from write_deploy import DEPLOY

from sensorkeep.auth.passwords import refuse_weak_password, refuse_weak_secret
from sensorkeep.config import Config, variable_names
from sensorkeep.errors import SensorkeepError
from sensorkeep.metrics import Metrics
from sensorkeep.model import Reason

DOCUMENT = (DEPLOY.parent / "docs" / "DEPLOYMENT.md").read_text("utf-8")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def jobs() -> dict[str, dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    assert document["rule_files"] == ["alerts.yml"]
    return {job["job_name"]: job["dns_sd_configs"][0] for job in document["scrape_configs"]}


def test_every_gateway_and_worker_is_scraped() -> None:
    assert {name: (job["names"], job["port"]) for name, job in jobs().items()} == {
        "gateway": (["gateway"], GATEWAY_PORT),
        "worker": (["worker"], WORKER_PORT),
    }
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]
    assert jobs().keys() <= services.keys()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_is_measured_and_is_explained(rule: dict[str, Any]) -> None:
    suffixes = {"counter": ("_total",), "histogram": ("_count", "_sum", "_bucket")}
    families = Metrics().registry.collect()
    measured = {family.name + suffix for family in families for suffix in suffixes.get(family.type, ("",))}
    asked = re.findall(r"\b(up|sensorkeep_\w+)\b(?:\{(\w+)=\"(\w+)\"\})?", rule["expr"])
    assert asked, rule["expr"]
    for name, label, value in asked:
        assert name in measured | {"up"}, name
        assert value in {"": [""], "job": jobs(), "reason": list(Reason), "status": ["503"]}[label], (label, value)
    assert rule["annotations"]["summary"]
    assert f"`{rule['alert']}`" in DOCUMENT


def test_every_setting_and_variable_that_the_document_names_exists() -> None:
    known = {variable for name in Config.model_fields for variable in variable_names(name)}
    named = set(re.findall(r"\bSENSORKEEP_[A-Z0-9_]+", DOCUMENT))
    assert named
    assert named <= known
    seeds = re.search(r"work unchanged: (.*?)\.\n", DOCUMENT, re.DOTALL)
    assert seeds is not None
    names = set(re.findall(r"`([A-Z_]+)`", seeds[1]))
    assert len(names) > 10
    assert names <= known
    chosen = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)=\d", DOCUMENT))
    assert {"WORKERS", "GATEWAYS"} <= chosen
    assert {name for name in chosen if not name.startswith("SENSORKEEP")} <= {choice.name for choice in CHOICES}


EXAMPLES = ["changeme", "CHANGE-ME", "your-secret-key-here", "sensorkeep", "admin123", "secret"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_looks_like_an_example_is_refused_as_password_and_as_key(example: str) -> None:
    with pytest.raises(SensorkeepError):
        refuse_weak_password(example, "admin", demo=False)
    for setting in ("SECRET_KEY", "API_KEY", "API_KEY_WS"):
        with pytest.raises(SensorkeepError, match=setting):
            refuse_weak_secret(setting, example, demo=False)


def test_secrets_as_the_example_tells_to_make_them_are_accepted() -> None:
    made = "0f3a9c0d7e" * 4
    refuse_weak_password(made, "admin", demo=False)
    refuse_weak_secret("API_KEY", made, demo=False)
