from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sensorkeep.config import Config, load_config, variable_names
from sensorkeep.errors import BadConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Config.model_fields:
        for variable in variable_names(name):
            monkeypatch.delenv(variable, raising=False)


def test_defaults_are_those_of_the_contract() -> None:
    config = load_config()
    assert (config.host, config.port, config.raw_retention_days) == ("127.0.0.1", 8000, 30)
    assert config.data_dir == Path("sensorkeep-data")


def test_the_environment_wins_over_the_file_and_an_option_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1111\nlog_level = "debug"\nnaive_timezone = "America/Sao_Paulo"\n')
    monkeypatch.setenv("SENSORKEEP_PORT", "2222")
    monkeypatch.setenv("LOG_LEVEL", "warning")
    config = load_config(file=file)
    assert (config.port, config.log_level, config.naive_timezone) == (2222, "warning", "America/Sao_Paulo")
    assert load_config(file=file, port=3333).port == 3333


@pytest.mark.parametrize(
    ("variable", "field", "value"),
    [
        ("API_KEY", "api_key", "k" * 20),
        ("API_KEY_WS", "api_key_ws", "k" * 20),
        ("SECRET_KEY", "secret_key", "k" * 40),
        ("MAX_WS_CONNECTIONS_PER_KEY", "max_ws_connections_per_key", "3"),
        ("RATE_LIMIT_PER_MINUTE", "rate_limit_per_minute", "120"),
        ("CORS_ORIGINS", "cors_origins", "http://a.example, http://b.example"),
        ("LOG_LEVEL", "log_level", "ERROR"),
        ("MINIO_ACCESS_KEY", "s3_access_key", "an-access-key"),
        ("MINIO_SECRET_KEY", "s3_secret_key", "a-secret-key"),
        ("KAFKA_TOPIC", "kafka_topic", "telemetria"),
        ("REDIS_URL", "pubsub_url", "redis://cache:6379"),
    ],
)
def test_the_names_of_the_older_programs_work(
    variable: str, field: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = getattr(load_config(), field)
    monkeypatch.setenv(variable, value)
    assert getattr(load_config(), field) != default


def test_what_the_older_programs_wrote_without_a_scheme_or_with_a_driver_becomes_a_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "kafka1:9092,kafka2:9092")
    monkeypatch.setenv("MINIO_ENDPOINT", "minio:9000")
    monkeypatch.setenv("MINIO_BUCKET", "telemetry-raw")
    monkeypatch.setenv("DATABASE_URL", "postgresql+asyncpg://esm:secret@timescaledb:5432/esm")
    config = load_config()
    assert config.queue_url == "kafka://kafka1:9092,kafka2:9092"
    assert (config.s3_endpoint, config.object_store_url) == ("http://minio:9000", "s3://telemetry-raw")
    assert config.tsdb_url == config.catalog_url == "postgresql://esm:secret@timescaledb:5432/esm"


def test_our_name_wins_over_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE_LIMIT_PER_MINUTE", "1")
    monkeypatch.setenv("SENSORKEEP_RATE_LIMIT_PER_MINUTE", "2")
    assert load_config().rate_limit_per_minute == 2


@pytest.mark.parametrize("name", ["HOST", "PORT", "DEMO", "DATA_DIR"])
def test_unprefixed_variables_of_other_programs_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_config()
    monkeypatch.setenv(name, "1")
    assert load_config() == before


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("SENSORKEEP_POTR", "8000", "SENSORKEEP_POTR"),
        ("SENSORKEEP_PORT", "eight", "SENSORKEEP_PORT"),
        ("SENSORKEEP_PORT", "70000", "SENSORKEEP_PORT"),
        ("SENSORKEEP_NAIVE_TIMEZONE", "Mars/Olympus", "SENSORKEEP_NAIVE_TIMEZONE"),
        ("LOG_LEVEL", "chatty", "SENSORKEEP_LOG_LEVEL"),
        ("SENSORKEEP_RAW_RETENTION_DAYS", "-1", "SENSORKEEP_RAW_RETENTION_DAYS"),
    ],
)
def test_an_unknown_or_bad_setting_stops_with_its_name(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadConfig, match=named):
        load_config()


@pytest.mark.parametrize("content", ["port = ", "potr = 1\n", 'port = "x"\n'])
def test_a_bad_file_stops_with_what_is_wrong(content: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(content)
    with pytest.raises(BadConfig, match=r"TOML|potr|SENSORKEEP_PORT"):
        load_config(file=file)
    with pytest.raises(BadConfig, match="cannot read"):
        load_config(file=tmp_path / "missing.toml")


def test_an_error_never_shows_the_value_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORKEEP_ACCESS_TOKEN_SECONDS", "hunter2hunter2")
    with pytest.raises(BadConfig) as caught:
        load_config()
    assert "hunter2" not in str(caught.value)
    monkeypatch.delenv("SENSORKEEP_ACCESS_TOKEN_SECONDS")
    monkeypatch.setenv("API_KEY", "a-very-secret-key-of-mine")
    assert "a-very-secret" not in repr(load_config())


def test_the_configuration_document_is_current() -> None:
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "scripts" / "write_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "CONFIGURATION.md").read_text("utf-8") == module.configuration(), "run `make docs`"
