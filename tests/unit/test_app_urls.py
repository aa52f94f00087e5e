"""Which backend a URL names, and what is refused before anything is opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sensorkeep.app.backends import is_shared, open_backends, open_store
from sensorkeep.app.urls import address, embedded_path, is_embedded, scheme, shown
from sensorkeep.clock import SystemClock
from sensorkeep.config import Config, load_config
from sensorkeep.errors import BadConfig

SERVICES = {
    "object_store_url": "s3://telemetry-raw",
    "queue_url": "kafka://kafka:9092",
    "tsdb_url": "postgresql://user:secret@db:5432/sensorkeep",
    "catalog_url": "postgresql://user:secret@db:5432/sensorkeep",
    "pubsub_url": "redis://cache:6379",
}


def config(**settings: Any) -> Config:
    return load_config(**settings)


def test_without_urls_everything_is_embedded_in_the_data_directory() -> None:
    plain = config()
    assert (scheme(plain, "queue_url"), scheme(plain, "tsdb_url")) == ("sqlite", "duckdb")
    assert embedded_path(plain, "queue_url", Path("here/queue.sqlite")) == Path("here/queue.sqlite")
    assert not is_shared(plain)


def test_an_s3_endpoint_alone_names_the_bucket_of_the_older_program() -> None:
    with_endpoint = config(s3_endpoint="http://seaweedfs:8333")
    assert not is_embedded(with_endpoint, "object_store_url")
    assert address(with_endpoint, "object_store_url") == "telemetry-raw"


@pytest.mark.parametrize(("url", "path"), [("sqlite:///var/q.db", "/var/q.db"), ("sqlite://q.db", "q.db")])
def test_a_path_is_absolute_with_three_slashes(url: str, path: str) -> None:
    assert embedded_path(config(queue_url=url), "queue_url", Path("unused")) == Path(path)


@pytest.mark.parametrize("url", ["amqp://broker", "sqlite://", "kafka://", "just-text://"])
def test_a_url_that_names_nothing_served_is_refused_by_the_name_of_its_setting(url: str) -> None:
    with pytest.raises(BadConfig, match="SENSORKEEP_QUEUE_URL"):
        address(config(queue_url=url), "queue_url")


def test_a_url_is_shown_without_user_password_and_options() -> None:
    assert shown(config(**SERVICES), "tsdb_url") == "postgresql://db:5432/sensorkeep"
    options = config(pubsub_url="rediss://:secret@cache:6379/1?ssl_ca_certs=/etc/ca.pem")
    assert shown(options, "pubsub_url") == "rediss://cache:6379/1"


@pytest.mark.parametrize("role", ["gateway", "worker"])
@pytest.mark.parametrize("embedded", SERVICES)
def test_a_process_beside_others_refuses_a_backend_of_its_own(role: Any, embedded: str, tmp_path: Path) -> None:
    settings = {name: url for name, url in SERVICES.items() if name != embedded}
    with pytest.raises(BadConfig, match=f"SENSORKEEP_{embedded.upper()} must name a service") as raised:
        open_backends(config(data_dir=tmp_path / "data", **settings), role, SystemClock())
    assert "sensorkeep serve" in raised.value.detail
    assert not (tmp_path / "data").exists()
    assert is_shared(config(**SERVICES))


def test_a_machine_that_has_no_wheel_for_postgresql_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pgpq", None)
    for name in [name for name in sys.modules if name.startswith("sensorkeep.tsdb.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BadConfig, match="needs the package pgpq"):
        open_store(config(**SERVICES), SystemClock())
