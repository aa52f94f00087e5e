"""What the LatestReadings of several processes promise together: each SharedLatestReadings stands for a process."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from catalog_databases import fresh_database
from pubsub_world import wait_until

from sensorkeep.catalog import shared_latest
from sensorkeep.catalog.database import Database
from sensorkeep.catalog.shared_latest import SharedLatestReadings
from sensorkeep.errors import Unavailable
from sensorkeep.model import LatestReading, LatestRecord
from sensorkeep.valkey import Client, Valkey
from services import VALKEY_URL, address, new_name
from services.valkey import Valkey as ValkeyService

pytestmark = pytest.mark.distributed


@dataclass
class Installation:
    """Processes on one catalog and one Valkey."""

    database: Database
    url: str
    prefix: str = field(default_factory=lambda: new_name("test"))
    clients: list[Valkey] = field(default_factory=list)

    def process(self, *, worker: bool = False) -> SharedLatestReadings:
        self.clients.append(Valkey(self.url, prefix=self.prefix))
        return SharedLatestReadings(self.database, self.clients[-1], saves=worker)

    def lose_all(self) -> None:
        """Valkey forgets everything of this installation, as when it was restarted empty."""
        self.clients[0].run(self._delete_all)

    def _delete_all(self, driver: Client) -> None:
        names = driver.keys(f"{self.prefix}:*")
        if names:
            driver.delete(*names)

    def stop_database(self) -> None:
        with self.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE latest_readings RENAME TO away")

    def start_database(self) -> None:
        with self.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO latest_readings")

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.fixture(params=["sqlite-file", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as database:
        yield database


@pytest.fixture
def installation(database: Database) -> Iterator[Installation]:
    made = Installation(database, address(VALKEY_URL))
    yield made
    made.close()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyService]:
    with ValkeyService(tmp_path / "valkey") as service:
        yield service


@pytest.fixture
def private(database: Database, valkey: ValkeyService) -> Iterator[Installation]:
    """An installation whose Valkey may be stopped."""
    made = Installation(database, valkey.url)
    yield made
    made.close()


def reading(time_us: int, value: float, sensor: str = "s") -> LatestReading:
    return LatestReading(sensor_uuid=sensor, time_us=time_us, value=value, status="ok", battery=91.5, rssi=-70)


def record(time_us: int, number: int = 7) -> LatestRecord:
    return LatestRecord(
        equipment_uuid="e", sensor_id="sensor_001", time_us=time_us, id=number, client_ip="192.0.2.1",
        values={"temperature": 25.5},
    )  # fmt: skip


def test_what_one_process_was_offered_another_one_finds_at_once(installation: Installation) -> None:
    one, other = installation.process(), installation.process()
    for number in range(50):
        one.offer([reading(number, float(number))], [record(number, number)])
        assert other.reading("s") == reading(number, float(number))
        assert other.record("e") == record(number, number)


def test_a_late_or_repeated_reading_never_replaces_a_newer_one_of_another_process(installation: Installation) -> None:
    one, other = installation.process(), installation.process()
    one.offer([reading(9, 1.0)], [record(9)])
    other.offer([reading(8, 2.0)], [record(8)])
    other.offer([reading(9, 1.0)])
    for process in (one, other):
        assert process.reading("s") == reading(9, 1.0)
        assert process.record("e") == record(9)


def test_of_an_equal_time_the_value_offered_last_stands_everywhere(installation: Installation) -> None:
    one, other = installation.process(), installation.process()
    one.offer([reading(9, 1.0)])
    other.offer([reading(9, 2.0)])
    assert one.reading("s") == other.reading("s") == reading(9, 2.0)
    one.offer([reading(9, 3.0), reading(9, 4.0)])
    assert one.reading("s") == other.reading("s") == reading(9, 4.0)


def test_a_worker_that_comes_to_an_old_claim_does_not_undo_a_correction(installation: Installation) -> None:
    gateway, worker, other = installation.process(), installation.process(worker=True), installation.process()
    gateway.offer([reading(9, 1.0)], [record(9, 1)])
    other.offer([reading(9, 2.0)], [record(9, 2)])
    worker.offer([reading(9, 1.0)], [record(9, 1)], again=True)
    for process in (gateway, worker, other):
        assert process.reading("s") == reading(9, 2.0)
        assert process.record("e") == record(9, 2)
    worker.offer([reading(10, 3.0)], again=True)
    assert gateway.reading("s") == reading(10, 3.0), "what nobody offered before it takes"


def test_times_before_the_epoch_and_far_ahead_are_compared_as_any_others(installation: Installation) -> None:
    one, other = installation.process(), installation.process()
    times = [-2_208_988_800_000_000, -1, 0, 1, 1_790_000_000_000_000, 1_790_000_000_000_001, 4_102_444_800_000_000]
    for time_us in times:
        one.offer([reading(time_us, float(time_us))])
        other.offer([reading(times[0] - 1, 0.5)])
        assert other.reading("s") == reading(time_us, float(time_us)), time_us


def test_many_are_offered_and_found_at_once(installation: Installation) -> None:
    one, other = installation.process(), installation.process()
    many = [reading(i, float(i), f"s{i}") for i in range(2500)]
    one.offer(many)
    found, _ = other.find([f"s{i}" for i in range(2600)])
    assert found == {item.sensor_uuid: item for item in many}


def test_a_worker_saves_what_it_was_offered_and_only_that(installation: Installation) -> None:
    gateway, worker = installation.process(), installation.process(worker=True)
    gateway.offer([reading(9, 1.0, "of the gateway")])
    worker.offer([reading(5, 1.0), reading(7, 2.0)], [record(7)])
    worker.save()
    worker.save()
    gateway.save()
    installation.lose_all()
    fresh = installation.process()
    assert fresh.reading("s") == reading(7, 2.0)
    assert fresh.record("e") == record(7)
    assert fresh.reading("of the gateway") is None
    assert gateway.reading("of the gateway") == reading(9, 1.0, "of the gateway"), "it knows what it accepted"
    assert fresh.reading("of the gateway") == reading(9, 1.0, "of the gateway"), "which is then shared again"


def test_a_save_that_failed_is_made_good_by_the_next(installation: Installation) -> None:
    worker = installation.process(worker=True)
    worker.offer([reading(5, 1.0), reading(5, 1.0, "t")])
    installation.stop_database()
    worker.offer([reading(6, 2.0)])
    with pytest.raises(Unavailable):
        worker.save()
    worker.offer([reading(4, 3.0), reading(7, 4.0, "u")])
    installation.start_database()
    worker.save()
    installation.lose_all()
    found, _ = installation.process().find(["s", "t", "u"])
    assert {uuid: found[uuid].time_us for uuid in found} == {"s": 6, "t": 5, "u": 7}


def test_after_valkey_lost_all_values_come_back_from_the_table_and_late_ones_do_not_count(
    installation: Installation,
) -> None:
    worker, gateway = installation.process(worker=True), installation.process()
    worker.offer([reading(9, 1.0), reading(9, 1.0, "t")], [record(9)])
    worker.save()
    installation.lose_all()
    fresh = installation.process()
    fresh.offer([reading(3, 2.0)], [record(3)])
    for process in (fresh, gateway):
        assert process.reading("s") == reading(9, 1.0)
        assert process.record("e") == record(9)
    assert gateway.reading("t") == reading(9, 1.0, "t")
    fresh.offer([reading(9, 5.0, "t")])
    assert gateway.reading("t") == reading(9, 5.0, "t")


def test_what_valkey_lost_before_it_was_saved_is_shared_when_it_is(installation: Installation) -> None:
    gateway, worker, late = (installation.process(worker=is_worker) for is_worker in (False, True, True))
    gateway.offer([reading(9, 1.0)], [record(9)])
    worker.offer([reading(9, 1.0)], [record(9)], again=True)
    worker.save()
    gateway.offer([reading(10, 2.0)], [record(10)])
    worker.offer([reading(10, 2.0)], [record(10)], again=True)
    late.offer([reading(5, 3.0)], [record(5)], again=True)
    installation.lose_all()
    fresh = installation.process()
    assert fresh.reading("s") == reading(9, 1.0), "what the table has"
    assert fresh.record("e") == record(9)
    worker.save()
    for _ in range(2):
        assert fresh.reading("s") == reading(10, 2.0)
        assert fresh.record("e") == record(10)
        installation.lose_all()
        late.save()
        fresh = installation.process()


def test_without_valkey_a_process_knows_what_it_accepted_and_what_workers_saved(
    private: Installation, valkey: ValkeyService
) -> None:
    worker, one, other = private.process(worker=True), private.process(), private.process()
    worker.offer([reading(5, 1.0)], [record(5)])
    worker.save()
    valkey.kill()
    assert one.reading("s") == reading(5, 1.0)
    assert one.record("e") == record(5)
    one.offer([reading(7, 2.0)], [record(7)])
    assert (one.reading("s"), one.record("e")) == (reading(7, 2.0), record(7))
    assert other.reading("s") == reading(5, 1.0), "it cannot know better"
    one.offer([reading(6, 3.0)])
    assert one.reading("s") == reading(7, 2.0)
    worker.offer([reading(7, 2.0)], [record(7)])
    worker.save()
    assert (other.reading("s"), other.record("e")) == (reading(7, 2.0), record(7))


def test_when_valkey_is_back_it_learns_what_it_missed_by_itself(private: Installation, valkey: ValkeyService) -> None:
    one, other = private.process(), private.process()
    one.offer([reading(5, 1.0), reading(5, 1.0, "t")])
    assert other.reading("s") == reading(5, 1.0)
    valkey.pause()  # it keeps its memory, which is then old
    try:
        one.offer([reading(7, 2.0)], [record(7)])
        one.offer([reading(8, 3.0)])
    finally:
        valkey.resume()
    client = private.clients[0]

    def is_back() -> bool:
        try:
            client.check()
        except Unavailable:
            return False
        return True

    wait_until(is_back)
    wait_until(lambda: other.reading("s") == reading(8, 3.0) and other.record("e") == record(7))
    assert other.reading("t") == reading(5, 1.0, "t")


def test_offers_and_look_ups_do_not_wait_for_a_valkey_that_hangs(private: Installation, valkey: ValkeyService) -> None:
    one = private.process()
    one.offer([reading(1, 1.0)])
    valkey.pause()
    try:
        began = time.monotonic()
        for i in range(2, 300):
            one.offer([reading(i, float(i))])
        assert one.reading("s") == reading(299, 299.0)
        assert time.monotonic() - began < 3.0
    finally:
        valkey.resume()


def test_more_than_can_wait_for_valkey_makes_it_forget_what_may_be_old(
    private: Installation, valkey: ValkeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_latest, "LATEST_UNSHARED_MAX", 10)
    monkeypatch.setattr(shared_latest, "LATEST_REMEMBERED_MAX", 20)
    worker, other = private.process(worker=True), private.process()
    sensors = [f"s{i}" for i in range(50)]
    worker.offer([reading(1, 1.0, sensor) for sensor in sensors])
    assert len(other.find(sensors)[0]) == 50
    valkey.pause()
    try:
        for sensor in sensors:
            worker.offer([reading(2, 2.0, sensor)])
        worker.save()
    finally:
        valkey.resume()
    assert len(worker._readings._unshared) <= 10
    assert len(worker._readings._young) + len(worker._readings._old) <= 20

    def is_right() -> bool:
        worker.offer([reading(3, 3.0, "another")])  # as traffic does: somebody must meet Valkey again
        return {item.time_us for item in other.find(sensors)[0].values()} == {2}

    wait_until(is_right)


def test_with_neither_valkey_nor_the_table_what_is_not_known_here_is_unavailable(
    private: Installation, valkey: ValkeyService
) -> None:
    one = private.process()
    one.offer([reading(5, 1.0)])
    valkey.kill()
    private.stop_database()
    assert one.reading("s") == reading(5, 1.0)
    with pytest.raises(Unavailable):
        one.reading("other")
    one.offer([reading(6, 2.0)])
    assert one.reading("s") == reading(6, 2.0)
    private.start_database()


def in_threads(acts: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_whatever_many_processes_offer_at_once_the_newest_stands(installation: Installation) -> None:
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    processes = [installation.process(worker=number == 0) for number in range(4)]
    sensors = [f"s{i}" for i in range(5)]

    def work(process: SharedLatestReadings, source: random.Random) -> None:
        for _ in range(60):
            batch = [reading(source.randrange(10_000), 1.0, sensor) for sensor in source.sample(sensors, 3)]
            process.offer(batch)
            with lock:
                offered.extend(batch)
            if source.random() < 0.05:
                installation.lose_all()
            process.find(sensors)

    offered: list[LatestReading] = []
    lock = threading.Lock()
    in_threads([lambda p=p, i=i: work(p, random.Random(seed + i)) for i, p in enumerate(processes)])  # type: ignore[misc]
    newest = {sensor: max(item.time_us for item in offered if item.sensor_uuid == sensor) for sensor in sensors}
    # As workers do, in the end: whatever Valkey lost is offered again.
    processes[0].offer(offered)
    for process in processes:
        found, _ = process.find(sensors)
        assert {sensor: found[sensor].time_us for sensor in sensors} == newest
