"""What the URLs of the settings name."""

from __future__ import annotations

from pathlib import Path

from sensorkeep.config import Config
from sensorkeep.errors import BadConfig


def embedded_path(config: Config, setting: str, scheme: str, default: Path) -> Path:
    """The path of an embedded backend's URL, or the default in the data directory."""
    url: str = getattr(config, setting)
    if not url:
        return default
    prefix = scheme + "://"
    if not url.startswith(prefix) or len(url) == len(prefix):
        name = f"SENSORKEEP_{setting.upper()}"
        raise BadConfig(f"{name}: that kind of URL is not served here; use {prefix}/path, or leave it empty")
    path = url.removeprefix(prefix)
    return Path("/" + path.lstrip("/") if path.startswith("/") else path)
