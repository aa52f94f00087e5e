"""The settings: environment variables and an optional TOML file, validated into one frozen Config.

Only app/ and the command line read it; every other part gets plain arguments.
"""

from __future__ import annotations

import os
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
DISTRIBUTED_VARIABLES = (
    "KAFKA_BROKERS", "KAFKA_TOPIC", "REDIS_URL", "DATABASE_URL", "MINIO_ENDPOINT", "MINIO_ACCESS_KEY",
    "MINIO_SECRET_KEY", "MINIO_BUCKET",
)  # fmt: skip
"""Older programs' names for services that this version does not use yet; `serve` says so where one is set."""
SECTIONS = ("Serving", "Storage", "Ingest", "Time", "Security", "Live", "Logging")


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
        str, _setting("object_store_url", "Storage", "Raw payloads. Default: `file://` in the data directory.")
    ] = ""
    queue_url: Annotated[
        str, _setting("queue_url", "Storage", "Claim queue. Default: `sqlite://` in the data directory.")
    ] = ""
    tsdb_url: Annotated[
        str, _setting("tsdb_url", "Storage", "Readings and rollups. Default: `duckdb://` in the data directory.")
    ] = ""
    catalog_url: Annotated[
        str, _setting("catalog_url", "Storage", "Catalog. Default: `sqlite://` in the data directory.")
    ] = ""
    pubsub_url: Annotated[str, _setting("pubsub_url", "Storage", "Live messages between processes.")] = "memory://"
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
