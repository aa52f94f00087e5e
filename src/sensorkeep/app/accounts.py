"""Users and keys: what auth needs of the settings, and the way to it for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pydantic import SecretStr

from sensorkeep.app.backends import open_catalog, open_pubsub
from sensorkeep.app.urls import is_embedded
from sensorkeep.auth.administration import Administration, ensure_admin
from sensorkeep.auth.passwords import Passwords
from sensorkeep.auth.setup import AuthSettings, open_auth
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.base import Accounts, Registry
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.clock import Clock, IdSource, SystemClock
from sensorkeep.config import Config
from sensorkeep.errors import BadConfig


@contextmanager
def open_administration(config: Config) -> Iterator[Administration]:
    """Users and keys alone, for the command line; works beside a running server. What was changed is told to the
    gateways where they share publish/subscribe. Raises BadConfig, Unavailable."""
    if is_embedded(config, "catalog_url") and not config.data_dir.is_dir():
        folder = config.data_dir.resolve()
        raise BadConfig(f"there is no data directory {folder}; name it with SENSORKEEP_DATA_DIR or --data-dir")
    clock = SystemClock()
    with ExitStack() as opened:
        database = open_catalog(config)
        opened.callback(database.close)
        pubsub, valkey = open_pubsub(config)
        if valkey is not None:
            opened.callback(valkey.close)
        opened.callback(pubsub.close)  # before Valkey: it sends what waits
        accounts, registry = CatalogAccounts(database, clock), CatalogRegistry(database)
        settings, ids = auth_settings(config), IdSource(clock)
        auth = open_auth(accounts, registry, clock, ids, settings, pubsub=pubsub, valkey=valkey)
        opened.callback(auth.close)
        yield auth.administration


def make_first_admin(config: Config, accounts: Accounts, registry: Registry, clock: Clock) -> str | None:
    """Create the user `admin` where there is no user; the password where one was generated. Raises BadConfig."""
    password = config.admin_password
    return ensure_admin(
        accounts,
        registry,
        None if password is None else password.get_secret_value(),
        config.demo,
        passwords=Passwords(auth_settings(config).password_parameters),
        clock=clock,
    )


def auth_settings(config: Config) -> AuthSettings:
    """What auth needs of the settings."""

    def text(secret: SecretStr | None) -> str | None:
        return None if secret is None else secret.get_secret_value()

    return AuthSettings(
        demo=config.demo,
        secret_key=text(config.secret_key),
        api_key=text(config.api_key),
        api_key_ws=text(config.api_key_ws),
        access_token_seconds=config.access_token_seconds,
        refresh_token_seconds=config.refresh_token_seconds,
        requests_per_minute=config.rate_limit_per_minute,
        max_ws_connections=config.max_ws_connections_per_key,
    )
