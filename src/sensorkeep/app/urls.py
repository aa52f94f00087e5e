"""What the URLs of the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sensorkeep.config import DEFAULT_BUCKET, Config
from sensorkeep.errors import BadConfig

Setting = Literal["object_store_url", "queue_url", "tsdb_url", "catalog_url", "pubsub_url"]

SCHEMES: dict[Setting, tuple[str, ...]] = {
    "object_store_url": ("file", "s3"),
    "queue_url": ("sqlite", "kafka"),
    "tsdb_url": ("duckdb", "postgresql"),
    "catalog_url": ("sqlite", "postgresql"),
    "pubsub_url": ("memory", "redis", "rediss"),
}
"""What each setting may name, the embedded kind first."""


def scheme(config: Config, setting: Setting) -> str:
    """Which kind of backend serves: the URL's scheme, or that of the default. Raises BadConfig for any other."""
    url = _url(config, setting)
    kinds = SCHEMES[setting]
    if not url:
        return kinds[0]
    found, separator, _ = url.partition("://")
    if separator and found in kinds:
        return found
    allowed = " or ".join(f"{kind}://" for kind in kinds)
    raise BadConfig(f"SENSORKEEP_{setting.upper()}: that kind of URL is not served; it begins with {allowed}")


def is_embedded(config: Config, setting: Setting) -> bool:
    """Whether the backend lives in this process and its data directory."""
    return scheme(config, setting) == SCHEMES[setting][0]


def embedded_path(config: Config, setting: Setting, default: Path) -> Path:
    """The path of an embedded backend's URL, or the default in the data directory."""
    path = address(config, setting)
    if not path:
        return default
    return Path("/" + path.lstrip("/") if path.startswith("/") else path)


def address(config: Config, setting: Setting) -> str:
    """What stands behind the scheme. Raises BadConfig where there is nothing, but for a default."""
    url = _url(config, setting)
    if not url:
        return ""
    rest = url.removeprefix(scheme(config, setting) + "://")
    if not rest and setting != "pubsub_url":
        raise BadConfig(f"SENSORKEEP_{setting.upper()}: {url} names nothing; write what it is behind the ://")
    return rest


def shown(config: Config, setting: Setting) -> str:
    """The URL without its user and password, for people to read; "" for the default."""
    kind, _, rest = _url(config, setting).partition("://")
    host, slash, path = rest.partition("/")
    return f"{kind}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}" if rest else ""


def _url(config: Config, setting: Setting) -> str:
    url: str = getattr(config, setting)
    if setting == "object_store_url" and not url and config.s3_endpoint:
        return f"s3://{DEFAULT_BUCKET}"
    return url
