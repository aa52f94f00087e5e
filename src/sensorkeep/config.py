"""The settings: environment variables and an optional TOML file, validated into one frozen Config.

Only app/ and the command line read it; every other part gets plain arguments.
"""

from __future__ import annotations

import os
import re
import tomllib
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from sensorkeep import limits
from sensorkeep.errors import BadConfig

PREFIX = "SENSORKEEP_"
CONFIG_FILE_VARIABLE = "SENSORKEEP_CONFIG"
CLIENT_VARIABLES = frozenset({"SENSORKEEP_URL", "SENSORKEEP_CLIENT_KEY", "SENSORKEEP_USERNAME", "SENSORKEEP_PASSWORD"})
"""Variables of the commands that talk to a running server; no settings of ours."""
SECTIONS = ("Serving", "Storage", "Services", "Ingest", "Time", "Security", "Live", "Logging")
DEFAULT_BUCKET = "telemetry-raw"

_POSTGRESQL = re.compile(r"^postgres(?:ql)?(?:\+\w+)?://")


def _setting(name: str, section: str, description: str, *aliases: str, **constraints: Any) -> Any:
    """A field: the section of the table it stands in, and the other programs' names for it."""
    return Field(
        validation_alias=AliasChoices(PREFIX + name.upper(), *aliases),
        description=description,
        json_schema_extra={"section": section, "aliases": list(aliases)},
        **constraints,
    )


class Config(BaseSettings):
    """Every setting. See docs/CONFIGURATION.md, which is generated from here."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", case_sensitive=False)

    host: Annotated[str, _setting("host", "Serving", "Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _setting("port", "Serving", "Port to listen on; 0 takes a free one.", ge=0, le=65535)] = 8000
    demo: Annotated[
        bool, _setting("demo", "Serving", "Allow well-known passwords and short keys. Never with data you care about.")
    ] = False
    ingest_threads: Annotated[
        int,
        _setting(
            "ingest_threads", "Serving", "Bulk requests decoded at the same time; each holds one buffer.", ge=1, le=64
        ),
    ] = 1
    worker_port: Annotated[
        int,
        _setting(
            "worker_port",
            "Serving",
            "Port of a worker's health and metrics (`sensorkeep worker`); 0 takes a free one.",
            ge=0,
            le=65535,
        ),
    ] = 8001
    metrics_open: Annotated[
        bool, _setting("metrics_open", "Serving", "Serve /metrics to everybody, not only to loopback.")
    ] = False
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        _setting(
            "cors_origins", "Serving", "Origins allowed by CORS, separated by commas; `*` for all.", "CORS_ORIGINS"
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        _setting(
            "trusted_proxies",
            "Serving",
            "Addresses or networks of proxies whose X-Forwarded-For tells the client's address, separated by commas.",
        ),
    ] = ("127.0.0.1", "::1")

    data_dir: Annotated[Path, _setting("data_dir", "Storage", "Directory of the embedded stores.")] = Path(
        "sensorkeep-data"
    )
    object_store_url: Annotated[
        str,
        _setting(
            "object_store_url",
            "Storage",
            "Raw payloads: `file:///path` or `s3://bucket`. Default: `file://` in the data directory, or with an S3"
            f" endpoint `s3://{DEFAULT_BUCKET}`.",
            "MINIO_BUCKET",
        ),
    ] = ""
    queue_url: Annotated[
        str,
        _setting(
            "queue_url",
            "Storage",
            "Claim queue: `sqlite:///path` or `kafka://host:9092,host:9092`. Default: `sqlite://` in the data"
            " directory.",
            "KAFKA_BROKERS",
        ),
    ] = ""
    tsdb_url: Annotated[
        str,
        _setting(
            "tsdb_url",
            "Storage",
            "Readings and rollups: `duckdb:///path` or `postgresql://user:password@host/database`. Default: `duckdb://`"
            " in the data directory.",
            "DATABASE_URL",
        ),
    ] = ""
    catalog_url: Annotated[
        str,
        _setting(
            "catalog_url",
            "Storage",
            "Catalog: `sqlite:///path` or `postgresql://user:password@host/database`. Default: `sqlite://` in the data"
            " directory.",
            "DATABASE_URL",
        ),
    ] = ""
    pubsub_url: Annotated[
        str,
        _setting(
            "pubsub_url",
            "Storage",
            "Live messages between processes, and what they share from moment to moment: `memory://` or"
            " `redis://host:6379` (Valkey, Redis).",
            "REDIS_URL",
        ),
    ] = "memory://"
    pubsub_prefix: Annotated[
        str,
        _setting(
            "pubsub_prefix",
            "Storage",
            "What every channel and key in Valkey begins with; one for each installation that shares a Valkey.",
            min_length=1,
            max_length=64,
        ),
    ] = "sensorkeep"
    raw_retention_days: Annotated[
        int, _setting("raw_retention_days", "Storage", "Days raw readings are kept; 0 keeps them for ever.", ge=0)
    ] = limits.RAW_RETENTION_DAYS
    payload_retention_days: Annotated[
        int,
        _setting(
            "payload_retention_days",
            "Storage",
            "Days raw payloads, batches and quarantine are kept; 0 keeps them for ever.",
            ge=0,
        ),
    ] = limits.PAYLOAD_RETENTION_DAYS
    tsdb_memory_bytes: Annotated[
        int, _setting("tsdb_memory_bytes", "Storage", "Memory DuckDB may use, in bytes.", ge=64 * limits.MIB)
    ] = 256 * limits.MIB
    tsdb_threads: Annotated[int, _setting("tsdb_threads", "Storage", "Threads DuckDB may use.", ge=1, le=64)] = 2

    s3_endpoint: Annotated[
        str,
        _setting(
            "s3_endpoint", "Services", "Address of the S3 service, such as `http://seaweedfs:8333`; empty for AWS.",
            "MINIO_ENDPOINT",
        ),
    ] = ""  # fmt: skip
    s3_access_key: Annotated[
        SecretStr | None,
        _setting("s3_access_key", "Services", "Access key of the S3 service.", "MINIO_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    ] = None
    s3_secret_key: Annotated[
        SecretStr | None,
        _setting(
            "s3_secret_key", "Services", "Secret key of the S3 service.", "MINIO_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"
        ),
    ] = None
    s3_region: Annotated[str, _setting("s3_region", "Services", "Region of the bucket.", "AWS_REGION")] = "us-east-1"
    kafka_topic: Annotated[
        str, _setting("kafka_topic", "Services", "Topic of the claims; made where there is none.", "KAFKA_TOPIC")
    ] = "telemetry.raw"
    kafka_partitions: Annotated[
        int,
        _setting(
            "kafka_partitions",
            "Services",
            "Partitions of a topic that is made: the greatest number of workers that share the work.",
            ge=1,
            le=1024,
        ),
    ] = 12
    kafka_replication_factor: Annotated[
        int,
        _setting(
            "kafka_replication_factor",
            "Services",
            "Copies of a topic that is made; 3 on a cluster, so that a lost broker loses nothing.",
            ge=1,
            le=16,
        ),
    ] = 1
    kafka_security_protocol: Annotated[
        Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"],
        _setting("kafka_security_protocol", "Services", "How the brokers are spoken to."),
    ] = "plaintext"
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        _setting("kafka_sasl_mechanism", "Services", "How a `sasl_` protocol proves the user."),
    ] = "SCRAM-SHA-512"
    kafka_username: Annotated[str, _setting("kafka_username", "Services", "User at the brokers.")] = ""
    kafka_password: Annotated[
        SecretStr | None, _setting("kafka_password", "Services", "The user's password at the brokers.")
    ] = None
    kafka_ca_file: Annotated[
        Path | None, _setting("kafka_ca_file", "Services", "PEM file of the authorities that sign the brokers' names.")
    ] = None

    max_wire_bytes: Annotated[
        int, _setting("max_wire_bytes", "Ingest", "Largest request body as sent, in bytes.", ge=1024)
    ] = limits.BODY_WIRE_BYTES_MAX
    max_inflated_bytes: Annotated[
        int, _setting("max_inflated_bytes", "Ingest", "Largest body after decompression, in bytes.", ge=1024)
    ] = limits.BODY_INFLATED_BYTES_MAX
    max_inflate_ratio: Annotated[
        int, _setting("max_inflate_ratio", "Ingest", "Largest ratio of inflated to sent bytes past 1 MiB.", ge=2)
    ] = limits.INFLATE_RATIO_MAX
    max_equipment: Annotated[
        int, _setting("max_equipment", "Ingest", "Equipment objects in one bulk request.", ge=1)
    ] = limits.EQUIPMENT_OBJECTS_MAX
    max_readings: Annotated[int, _setting("max_readings", "Ingest", "Readings in one bulk request.", ge=1)] = (
        limits.READINGS_PER_REQUEST_MAX
    )
    gather_seconds: Annotated[
        float,
        _setting("gather_seconds", "Ingest", "How long the worker gathers batches before it writes.", ge=0, le=60),
    ] = limits.GATHER_SECONDS

    naive_timezone: Annotated[str, _setting("naive_timezone", "Time", "IANA zone of timestamps that carry none.")] = (
        "UTC"
    )
    display_timezone: Annotated[
        str, _setting("display_timezone", "Time", "IANA zone of date_recorded and time_recorded.")
    ] = "UTC"

    admin_password: Annotated[
        SecretStr | None,
        _setting(
            "admin_password",
            "Security",
            "Password of `admin` at the first start; generated and printed once if not set.",
        ),
    ] = None
    secret_key: Annotated[
        SecretStr | None,
        _setting(
            "secret_key",
            "Security",
            "Key that signs tokens; generated and kept in the catalog if not set.",
            "SECRET_KEY",
        ),
    ] = None
    api_key: Annotated[
        SecretStr | None, _setting("api_key", "Security", "Static key with scopes ingest and read.", "API_KEY")
    ] = None
    api_key_ws: Annotated[
        SecretStr | None, _setting("api_key_ws", "Security", "Static key with scope live.", "API_KEY_WS")
    ] = None
    access_token_seconds: Annotated[
        int, _setting("access_token_seconds", "Security", "Life of an access token.", ge=10, le=86400)
    ] = limits.ACCESS_TOKEN_SECONDS
    refresh_token_seconds: Annotated[
        int, _setting("refresh_token_seconds", "Security", "Life of a refresh token.", ge=60, le=90 * 86400)
    ] = limits.REFRESH_TOKEN_SECONDS
    rate_limit_per_minute: Annotated[
        int,
        _setting(
            "rate_limit_per_minute",
            "Security",
            "Requests a minute for each credential and address; 0: no limit.",
            "RATE_LIMIT_PER_MINUTE",
            ge=0,
        ),
    ] = 0

    max_ws_connections_per_key: Annotated[
        int,
        _setting(
            "max_ws_connections_per_key", "Live", "Open WebSockets for each key.", "MAX_WS_CONNECTIONS_PER_KEY", ge=1
        ),
    ] = limits.WS_CONNECTIONS_PER_KEY_MAX

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _setting("log_level", "Logging", "Least level logged.", "LOG_LEVEL"),
    ] = "info"
    access_log: Annotated[
        bool, _setting("access_log", "Logging", "Log each request (never bodies, queries or credentials).")
    ] = True

    @field_validator("cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("s3_endpoint")
    @classmethod
    def _with_scheme(cls, value: str) -> str:
        """MINIO_ENDPOINT was written as `minio:9000`."""
        return f"http://{value}" if value and "://" not in value else value.rstrip("/")

    @field_validator("object_store_url")
    @classmethod
    def _of_bucket(cls, value: str) -> str:
        """MINIO_BUCKET named the bucket alone."""
        return f"s3://{value}" if value and "://" not in value else value

    @field_validator("queue_url")
    @classmethod
    def _of_brokers(cls, value: str) -> str:
        """KAFKA_BROKERS named the brokers alone."""
        return f"kafka://{value}" if value and "://" not in value else value

    @field_validator("tsdb_url", "catalog_url")
    @classmethod
    def _without_driver(cls, value: str) -> str:
        """DATABASE_URL is often written as `postgres://`, or with the name of a Python driver."""
        return _POSTGRESQL.sub("postgresql://", value)

    @field_validator("naive_timezone", "display_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is not an IANA time zone name such as America/Sao_Paulo") from None
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file; `load_config` passes the file's content as the last source."""
        return init_settings, env_settings


def load_config(*, file: Path | None = None, **overrides: Any) -> Config:
    """Read the settings: `overrides` (None values are left out), then the environment, then the TOML file.

    The file is `file`, else the one named by SENSORKEEP_CONFIG. Raises BadConfig naming what is unknown or wrong.
    """
    known = {PREFIX + name.upper() for name in Config.model_fields} | CLIENT_VARIABLES | {CONFIG_FILE_VARIABLE}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise BadConfig(f"unknown setting {unknown[0]}; docs/CONFIGURATION.md lists them all")
    values = _read_file(file)
    environment = {name.upper() for name, value in os.environ.items() if value != ""}
    for name in list(values):
        if environment & {alias.upper() for alias in variable_names(name)}:
            del values[name]
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return Config(**{PREFIX + name.upper(): value for name, value in values.items()})
    except ValidationError as error:
        raise BadConfig("; ".join(_explain(dict(item)) for item in error.errors())) from None


def variable_names(name: str) -> list[str]:
    """The environment variables that set `name`, ours first."""
    extra = Config.model_fields[name].json_schema_extra
    aliases = extra["aliases"] if isinstance(extra, dict) else []
    return [PREFIX + name.upper(), *(str(alias) for alias in aliases)]  # type: ignore[union-attr]


def _read_file(file: Path | None) -> dict[str, Any]:
    path = file or (Path(os.environ[CONFIG_FILE_VARIABLE]) if os.environ.get(CONFIG_FILE_VARIABLE) else None)
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadConfig(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"the settings file {path} is not valid TOML: {error}") from None
    unknown = sorted(set(values) - set(Config.model_fields))
    if unknown:
        raise BadConfig(f"unknown setting {unknown[0]} in {path}; docs/CONFIGURATION.md lists them all")
    return values


def _explain(error: Mapping[str, Any]) -> str:
    """One validation error in words, without the value: it may be a secret."""
    name = str(error["loc"][0]) if error["loc"] else "settings"
    name = name.removeprefix(PREFIX).lower() if name.upper().startswith(PREFIX) else name
    shown = PREFIX + name.upper() if name in Config.model_fields else name
    return f"{shown}: {error['msg']}"


def describe_settings() -> str:
    """The settings as Markdown tables, one for each section: what docs/CONFIGURATION.md holds."""
    lines: list[str] = []
    for section in SECTIONS:
        lines += [f"## {section}", "", "| variable | file key | default | meaning |", "|---|---|---|---|"]
        for name, field in Config.model_fields.items():
            extra = field.json_schema_extra
            if not isinstance(extra, dict) or extra["section"] != section:
                continue
            variables = " or ".join(f"`{variable}`" for variable in variable_names(name))
            lines.append(f"| {variables} | `{name}` | {_default(field.default)} | {field.description} |")
        lines.append("")
    return "\n".join(lines)


def _default(value: object) -> str:
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
