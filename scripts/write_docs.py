"""Writes the documents that are generated: docs/CONFIGURATION.md. A test holds that they are current."""

from __future__ import annotations

from pathlib import Path

from sensorkeep.config import describe_settings

DOCS = Path(__file__).parent.parent / "docs"

CONFIGURATION = """# Configuration

Every setting is an environment variable, or a key in a TOML file named by `--config` or `SENSORKEEP_CONFIG`. The
environment wins over the file, and options of `sensorkeep serve` win over both. A setting that is unknown or not valid
stops the start with a message that names it. Where two variables are listed, the second is another program's name for
the same thing.

Commands that talk to a running server take its address and credential from `SENSORKEEP_URL`, `SENSORKEEP_CLIENT_KEY`,
`SENSORKEEP_USERNAME` and `SENSORKEEP_PASSWORD`, or from their options.

Which backend serves is chosen by URL. With everything embedded, `sensorkeep serve` needs no setting at all. Gateways
and workers (`sensorkeep gateway`, `sensorkeep worker`) share an object store, a queue, a time series store and a
catalog, so that all four must name a service; see [DEPLOYMENT.md](DEPLOYMENT.md).

This file is generated from `src/sensorkeep/config.py` by `make docs`.

"""


def configuration() -> str:
    """The text of docs/CONFIGURATION.md."""
    return CONFIGURATION + describe_settings().rstrip() + "\n"


if __name__ == "__main__":
    (DOCS / "CONFIGURATION.md").write_text(configuration(), "utf-8")
