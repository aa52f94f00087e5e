"""The stores that the settings name, opened for moving a whole installation while no server runs on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sensorkeep.app import backends
from sensorkeep.app.urls import is_embedded
from sensorkeep.archive.installation import Installation
from sensorkeep.clock import SystemClock
from sensorkeep.config import Config
from sensorkeep.data_dir import DataDir
from sensorkeep.errors import BadConfig


@contextmanager
def open_installation(config: Config, *, existing: bool) -> Iterator[Installation]:
    """The stores; an `existing` one must have its data directory, another one is made.

    Raises BadConfig, Corrupt, Unavailable, or DataDirInUse where a server runs on the data directory. Where nothing is
    embedded a running server cannot be seen from here.
    """
    embedded = any(is_embedded(config, setting) for setting in backends.SHARED)
    if embedded and existing and not config.data_dir.is_dir():
        folder = config.data_dir.resolve()
        raise BadConfig(f"there is no data directory {folder}; name it with SENSORKEEP_DATA_DIR or --data-dir")
    clock = SystemClock()
    with ExitStack() as opened:
        if embedded:
            opened.callback(DataDir(config.data_dir).close)
        database = backends.open_catalog(config)
        opened.callback(database.close)
        object_store = backends.open_object_store(config)
        opened.callback(object_store.close)
        store = backends.open_store(config, clock)
        opened.callback(store.close)
        queue = backends.open_queue(config, clock, consume=False)
        opened.callback(queue.close)
        yield Installation(database, store, object_store, queue, clock)
