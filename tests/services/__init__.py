"""The real services that the distributed form stands on, started by the tests themselves; no root, no Docker.

`python -m services` (from the folder tests) starts all four by hand and prints the settings that use them.
"""

from __future__ import annotations

import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import psycopg

sys.path.append(str(Path(__file__).parents[2] / "scripts"))  # what is deployed is described there

from deployment import Places, environment

from services.broker import Kafka
from services.postgresql import PostgreSQL
from services.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS
from services.valkey import Valkey

BROKERS = "SENSORKEEP_TEST_KAFKA_BROKERS"
S3_ENDPOINT = "SENSORKEEP_TEST_S3_ENDPOINT"
POSTGRESQL_URL = "SENSORKEEP_TEST_POSTGRESQL_URL"
VALKEY_URL = "SENSORKEEP_TEST_VALKEY_URL"
TIMESCALE_URL = "SENSORKEEP_TEST_TIMESCALE_URL"
"""Given by whoever has one: the URL of a superuser of a PostgreSQL with TimescaleDB."""


class Services:
    """All four, side by side, for the time of a `with` block."""

    def __init__(self, folder: Path) -> None:
        self.kafka = Kafka(folder / "kafka")
        self.seaweedfs = SeaweedFS(folder / "seaweedfs")
        self.postgresql = PostgreSQL(folder / "postgresql")
        self.valkey = Valkey(folder / "valkey")
        self._stack = ExitStack()

    def __enter__(self) -> Services:
        every = (self.kafka, self.seaweedfs, self.postgresql, self.valkey)
        for service in every:
            self._stack.callback(service.__exit__, None, None, None)
        try:
            with ThreadPoolExecutor(len(every)) as pool:
                for started in [pool.submit(service.start) for service in every]:
                    started.result()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def addresses(self) -> dict[str, str]:
        """Where they are, as the variables that `settings` reads."""
        return {
            BROKERS: self.kafka.brokers,
            S3_ENDPOINT: self.seaweedfs.endpoint,
            POSTGRESQL_URL: self.postgresql.url,
            VALKEY_URL: self.valkey.url,
        }


def new_name(prefix: str) -> str:
    """A name that no other test uses: fit for a topic, a bucket, a database and a key prefix."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def address(variable: str) -> str:
    """The address of a service that this run started. A missing one is a mistake of the run, never a skip."""
    found = os.environ.get(variable)
    assert found, f"{variable} is not set: run the tests of the distributed form with `make test-distributed`"
    return found


def make_database(admin_url: str) -> str:
    """A new database on that server; the URL of it."""
    name = new_name("sensorkeep")
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    base, _, options = admin_url.partition("?")
    return f"{base.rpartition('/')[0]}/{name}" + (f"?{options}" if options else "")


def drop_database(admin_url: str, url: str) -> None:
    """Remove a database of make_database, whoever is still connected."""
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def has_timescale() -> bool:
    """Whether a TimescaleDB was given for this run."""
    return bool(os.environ.get(TIMESCALE_URL))


def settings(addresses: dict[str, str], database_url: str) -> dict[str, str]:
    """The settings of a gateway or worker on these services, as it is deployed, with a topic, a bucket and a prefix of
    their own."""
    name = new_name("test")
    places = Places(
        brokers=addresses[BROKERS],
        s3_endpoint=addresses[S3_ENDPOINT],
        s3_access_key=ACCESS_KEY,
        s3_secret_key=SECRET_KEY,
        database_url=database_url,
        valkey_url=addresses[VALKEY_URL],
        bucket=name,
        topic=name,
        prefix=name,
    )
    return environment(places, partitions=4)
