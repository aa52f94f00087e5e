"""Fixtures of the tests on real services."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from services import (
    BROKERS,
    POSTGRESQL_URL,
    S3_ENDPOINT,
    TIMESCALE_URL,
    VALKEY_URL,
    address,
    drop_database,
    has_timescale,
    make_database,
    settings,
)

DATABASES = ["postgresql", *(["timescaledb"] if has_timescale() else [])]
"""What the time series may be kept on; TimescaleDB where this run was given one."""


@contextmanager
def _settings(database: str) -> Iterator[dict[str, str]]:
    admin_url = os.environ[TIMESCALE_URL] if database == "timescaledb" else address(POSTGRESQL_URL)
    addresses = {variable: address(variable) for variable in (BROKERS, S3_ENDPOINT, VALKEY_URL)}
    url = make_database(admin_url)
    try:
        yield settings(addresses, url)
    finally:
        drop_database(admin_url, url)


@pytest.fixture(params=DATABASES)
def services(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The settings of an installation of its own on the services of this run."""
    with _settings(request.param) as made:
        yield made


@pytest.fixture(scope="module", params=DATABASES)
def module_services(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """As `services`, for the tests of a module together."""
    with _settings(request.param) as made:
        yield made
