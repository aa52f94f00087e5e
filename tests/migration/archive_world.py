"""An installation with a history of every kind, moved in tests, and everything that it answers."""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from sensorkeep.archive.exporting import export_everything
from sensorkeep.archive.files import Archive
from sensorkeep.archive.importing import import_everything
from sensorkeep.archive.installation import Installation
from sensorkeep.archive.layout import Manifest
from sensorkeep.auth.credentials import secret_sha256
from sensorkeep.catalog.accounts import CatalogAccounts
from sensorkeep.catalog.base import ApiKey, AuditEntry, RefreshToken, StoredAnswer, User
from sensorkeep.catalog.idempotency import CatalogIdempotencyKeys
from sensorkeep.catalog.registry import CatalogRegistry
from sensorkeep.catalog.schema import METADATA
from sensorkeep.clock import DAY_US, HOUR_US, MICROSECONDS, MINUTE_US, ManualClock, rfc3339
from sensorkeep.decode.gathered import TEMPERATURE, Entry
from sensorkeep.decode.temperature import check_time, parse_temperature
from sensorkeep.ingest.accept import Sender
from sensorkeep.model import READINGS_SCHEMA, DecodedBatch, Sensor, external_uuid
from sensorkeep.testing.pipeline import Pipeline, PipelineSettings
from sensorkeep.tsdb.base import TimeSeriesStore, Write

START_US = 1_771_286_400 * MICROSECONDS  # 2026-02-17T00:00:00Z
DAYS = 7
STEP_HOURS = 6
BULK_SENSORS = [external_uuid(f"freezer/probe-{i}") for i in range(3)]
STATION = "station"
SENSORS = [*BULK_SENSORS, external_uuid(f"{STATION}/temperature"), external_uuid("meter/power")]
SENDER = Sender("key:history")
BACKFILL = Sender("key:history", backfill=True)
KEY_SECRET = "sk_0123456789abcdef0123456789abcdef_secret"
RETENTION_DAYS = 2


class History:
    """Some days of traffic through the embedded pipeline: fresh, late, repeated and corrected readings, readings set
    aside, and days whose readings are gone, some of which got more readings since. The same for the same seed."""

    def __init__(self, directory: Path, seed: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._random = random.Random(seed)
        self.clock = ManualClock(START_US)
        settings = PipelineSettings(raw_retention_days=RETENTION_DAYS)
        self.pipeline = Pipeline(directory, self.clock, seed, settings)
        self.ahead: list[str] = []
        """Batches with a reading that was in the future."""
        self._sent: list[dict[str, Any]] = []

    def run(self) -> History:
        """Live through it, up to rest."""
        self._make_accounts()
        self.go_on(DAYS * 24)
        self._answer_once()
        return self

    def go_on(self, hours: int) -> None:
        """Traffic of some hours, up to rest."""
        for step in range(hours // STEP_HOURS):
            self.clock.advance(STEP_HOURS * 3600)
            self._send_bulk(self._readings(step))
            if step % 3 == 0:
                self._send_single()
            if step % 3 == 1:
                self._send_general()
            if step % 7 == 6:
                self._send_ahead()
            if step % 4 == 3:
                self._backfill()
            self.work(1)
        self.rest()

    def work(self, rounds: int) -> None:
        for _ in range(rounds):
            self.pipeline.worker.round()
            self.clock.advance(1)

    def rest(self) -> None:
        """Until everything is stored and kept."""
        self.work(10)
        assert self.pipeline.queue.depth().claims == 0

    def installation(self) -> Installation:
        pipeline = self.pipeline
        return Installation(pipeline.database, pipeline.store, pipeline.objects, pipeline.queue, self.clock)

    def be_quiet(self) -> None:
        """Nothing comes for so long that every day past the retention is sealed, whenever it was written to: to a store
        that a day was moved to, that was when it moved."""
        self.clock.advance(50 * 3600)
        self.work(20)

    def twin(self, pipeline: Pipeline) -> History:
        """The same history going on in another installation."""
        twin = copy.copy(self)
        twin.pipeline = pipeline
        twin.clock = pipeline.clock
        twin._random = random.Random()
        twin._random.setstate(self._random.getstate())
        return twin

    def late_readings_of_sealed_days(self) -> None:
        """What comes in after the move: it must merge."""
        day_us = self.clock.now_us() // DAY_US * DAY_US - 5 * DAY_US
        times = [day_us + 3 * HOUR_US + 1, day_us - 13 * HOUR_US, day_us - 9 * DAY_US]
        self._send_bulk([self._item(sensor, time_us) for sensor in BULK_SENSORS for time_us in times], BACKFILL)
        self.rest()

    def replay(self) -> None:
        """Readings that were ahead of the clock are behind it by now."""
        for batch_id in self.ahead[-2:]:  # the payloads of older ones may be gone
            if self.pipeline.ledger.batch(batch_id).quarantined > 1:
                self.pipeline.acceptor.replay(batch_id, BACKFILL)
        self.rest()

    def _make_accounts(self) -> None:
        database = self.pipeline.database
        now_us = self.clock.now_us()
        accounts, registry = CatalogAccounts(database, self.clock), CatalogRegistry(database)
        accounts.put_user(User("ana", "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA", frozenset({"read", "admin"})))
        accounts.put_user(User("téo", "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA", frozenset({"read"}), True))
        accounts.put_key(
            ApiKey("k1", "gateway", secret_sha256(KEY_SECRET), frozenset({"ingest"}), now_us, max_ws_connections=3)
        )
        accounts.put_refresh_token(RefreshToken("token", "family", "ana", now_us + 30 * DAY_US))
        registry.audit(AuditEntry(at_us=now_us, actor="ana", action="key.issue", subject="k1", client_ip="10.0.0.1"))
        registry.secret("signing", "s" * 40)
        registry.reserve_ids(1000)

    def _answer_once(self) -> None:
        """An answer that an idempotency key still stands for."""
        idempotency = CatalogIdempotencyKeys(self.pipeline.database)
        idempotency.begin("key:k1", "first", self.clock.now_us())
        answer = StoredAnswer(status=201, headers={"location": "/x"}, body=b'{"a":"\xc3\xa9"}\x00\xff')
        idempotency.finish("key:k1", "first", "0" * 64, answer)

    def _readings(self, step: int) -> list[dict[str, Any]]:
        now_us = self.clock.now_us()
        items = []
        for sensor in BULK_SENSORS:
            for minute in self._random.sample(range(STEP_HOURS * 60), 4 * STEP_HOURS):
                items.append(self._item(sensor, now_us - minute * MINUTE_US - self._random.randrange(9)))
        if self._sent:
            items += self._random.sample(self._sent, min(2, len(self._sent)))  # again
            items.append(self._random.choice(self._sent) | {"valor": self._value()})  # corrected
        if step > 1:
            late_us = now_us - self._random.randrange(4 * HOUR_US, RETENTION_DAYS * DAY_US - HOUR_US)
            items.append(self._item(self._random.choice(BULK_SENSORS), late_us))
        self._random.shuffle(items)
        self._sent = [*self._sent, *items][-60:]
        return items

    def _item(self, sensor: str, time_us: int) -> dict[str, Any]:
        said: dict[str, Any] = {"valor": self._value()}
        if self._random.random() < 0.1:
            said = {"sensor_telemetria": self._random.choice(["on", "unavailable"])}
        if self._random.random() < 0.2:
            said |= {"sensor_bateria_pct": 55.5, "sensor_sinal_lqi": 200, "sensor_sinal_rssi": -71}
        name = {"sensor_nome": "Sonda", "sensor_tipo": "temperatura", "sensor_unidade": "°C"}
        return {"sensor_uuid": sensor, "timestamp": rfc3339(time_us)} | name | said

    def _value(self) -> float:
        return round(self._random.gauss(-18, 4), 2)

    def _send_bulk(self, items: list[dict[str, Any]], sender: Sender = SENDER) -> str:
        equipment = {"equip_uuid": external_uuid("freezer"), "equip_nome": "Freezer", "equip_status": "ATIVO"}
        body = gzip.compress(json.dumps([equipment | {"sensor": items}]).encode(), mtime=0)
        return self.pipeline.acceptor.bulk(iter([body]), "gzip", sender).claim.batch_id

    def _send_ahead(self) -> None:
        """A reading that is ahead of the clock, so that it is set aside and can be replayed later."""
        ahead_us = self.clock.now_us() + 20 * MINUTE_US
        items = [self._item(BULK_SENSORS[0], ahead_us), self._item(BULK_SENSORS[1], self.clock.now_us())]
        self.ahead.append(self._send_bulk([*items, {"sensor_uuid": BULK_SENSORS[0], "timestamp": "?", "valor": 1}]))

    def _send_single(self) -> None:
        acceptor = self.pipeline.acceptor
        said = {"temperature": self._value(), "sensor_id": STATION, "timestamp": rfc3339(self.clock.now_us())}
        body = json.dumps(said).encode()
        parsed, options = parse_temperature(body), acceptor.options(SENDER)
        time_us = check_time(parsed.timestamp, options)
        acceptor.gathered((Entry(TEMPERATURE, options.received_us, 1, "10.0.0.1", body, parsed, time_us),), SENDER)

    def _send_general(self) -> None:
        row = {"sensor_id": "meter", "timestamp": rfc3339(self.clock.now_us()), "values": {"power": 1e300}}
        body = json.dumps([row | {"values": {"power": self._random.choice([1e300, 0.1, -3.0])}}]).encode()
        self.pipeline.acceptor.readings(body, SENDER)

    def _backfill(self) -> None:
        """Readings of days that are sealed by now (or will never be known otherwise)."""
        now_us = self.clock.now_us()
        times = [now_us - self._random.randrange(3 * DAY_US, 6 * DAY_US) for _ in range(5)]
        self._send_bulk([self._item(self._random.choice(BULK_SENSORS), time_us) for time_us in times], BACKFILL)


def quiet(_description: str, _total: float | None) -> Any:
    """Progress that nobody watches."""
    return nullcontext(_Unwatched())


class _Unwatched:
    def update(self, completed: float, note: str = "") -> None:
        pass


@contextmanager
def empty_pipeline(directory: Path, clock: ManualClock) -> Iterator[Pipeline]:
    """A new embedded installation."""
    directory.mkdir()
    pipeline = Pipeline(directory, clock, 1, PipelineSettings(raw_retention_days=RETENTION_DAYS))
    try:
        yield pipeline
    finally:
        pipeline.close()


def installation_of(pipeline: Pipeline) -> Installation:
    return Installation(pipeline.database, pipeline.store, pipeline.objects, pipeline.queue, pipeline.clock)


def export(installation: Installation, directory: Path, *, with_payloads: bool = True) -> Manifest:
    return export_everything(installation, directory, with_payloads=with_payloads, progress=quiet)


def bring_in(directory: Path, installation: Installation) -> bool:
    return import_everything(installation, Archive(directory), quiet)


Answers = dict[str, pa.Table]


def answers(store: TimeSeriesStore, now_us: int) -> Answers:
    """Everything that a store tells of the history."""
    end_us = now_us + DAY_US
    today_us = now_us // DAY_US * DAY_US
    found = {
        "raw": store.read_raw(SENSORS, 0, end_us, 1_000_000),
        "hour": store.read_rollup("hour", SENSORS, 0, end_us, 1_000_000),
        "day": store.read_rollup("day", SENSORS, 0, end_us, 1_000_000),
        "sealed hour": store.export_buckets("hour", 0, end_us),
        "sealed day": store.export_buckets("day", 0, end_us),
    }
    for days in (1, 3, 6, 13, 30):
        found[f"{days} days"] = store.summarize(SENSORS, today_us - days * DAY_US, today_us + 5 * HOUR_US)
    return found


def assert_same(before: Answers, after: Answers) -> None:
    """Equal but for the last bits, which depend on who adds up."""
    for name, expected in before.items():
        found = after[name]
        assert found.num_rows == expected.num_rows > 0, name
        assert found.column_names == expected.column_names
        for column in expected.column_names:
            ones: list[Any] = expected[column].to_pylist()
            others: list[Any] = found[column].to_pylist()
            pairs = zip(ones, others, strict=True)
            for row, (one, other) in enumerate(pairs):
                same = math.isclose(one, other, rel_tol=1e-9) if _both_floats(one, other) else one == other
                assert same, f"{name}, {column} of row {row}: {one!r} became {other!r}"


def _both_floats(one: Any, other: Any) -> bool:
    return isinstance(one, float) and isinstance(other, float)


def tables(installation: Installation) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the catalog."""
    with installation.database.read() as connection:
        return {
            table.name: [
                tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))
            ]
            for table in METADATA.sorted_tables
        }


def write_readings(store: TimeSeriesStore, count: int, hours_ago: int = 0) -> None:
    """Some readings, straight into a store."""
    first_us = START_US - hours_ago * HOUR_US
    table = pa.table(
        {"series": pa.array([0] * count, pa.int32()), "time": pa.array([first_us + i for i in range(count)])}
        | {field.name: pa.nulls(count, field.type) for field in list(READINGS_SCHEMA)[2:]}
    )
    table = table.set_column(2, "value", pa.array([1.5] * count)).cast(READINGS_SCHEMA)
    sensor = Sensor(uuid=SENSORS[0], equipment_uuid=external_uuid("freezer"))
    store.write([Write(f"straight-{hours_ago}", DecodedBatch(equipment=(), sensors=(sensor,), readings=table))])


def payloads(installation: Installation) -> dict[str, bytes]:
    """Every payload."""
    store = installation.object_store
    return {stored.key: b"".join(store.get(stored.key)) for stored in store.list()}
