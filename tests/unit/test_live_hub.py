"""The hub: who gets what, what is bounded, and what is told of losses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.errors import LimitExceeded, Unavailable
from sensorkeep.live.client import Client
from sensorkeep.live.frames import payloads, text_frame
from sensorkeep.live.hub import Hub, Inbox
from sensorkeep.live.messages import LiveMessage, seal
from sensorkeep.metrics import Metrics
from sensorkeep.model import external_uuid
from sensorkeep.pubsub.base import READINGS_CHANNEL
from sensorkeep.pubsub.memory import MemoryPubSub


class Recorder:
    """An outlet that keeps what it is given, and takes only as much as it is told to."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.received: list[Any] = []
        self.on_writable: Callable[[], None] | None = None

    def writable(self) -> bool:
        return self.room > 0

    def write(self, frames: bytes) -> None:
        assert self.room > 0
        self.room -= 1
        self.received += [json.loads(payload) for payload in payloads(frames)]

    def make_room(self, writes: int) -> None:
        self.room += writes
        assert self.on_writable is not None
        self.on_writable()


def _message(number: int, equipment: str = "e", sensor: str | None = None) -> LiveMessage:
    sensor_uuid = None if sensor is None else external_uuid(sensor)
    return LiveMessage(external_uuid(equipment), sensor_uuid, json.dumps(number).encode())


def _total(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def _publish(pubsub: MemoryPubSub, *messages: LiveMessage, left_out: int = 0) -> None:
    pubsub.publish(READINGS_CHANNEL, seal(messages, left_out))


def test_every_client_gets_every_message_in_order() -> None:
    async def run() -> None:
        pubsub, metrics = MemoryPubSub(), Metrics()
        hub = Hub(pubsub, metrics)
        outlets = [Recorder() for _ in range(3)]
        for outlet in outlets:
            hub.connect(outlet, "key:a", 10)
        for i in range(700):
            _publish(pubsub, _message(i))
        await _until(lambda: all(len(outlet.received) == 700 for outlet in outlets))
        assert all(outlet.received == list(range(700)) for outlet in outlets)
        assert _total(metrics, "sensorkeep_ws_messages_total") == 2100
        assert _total(metrics, "sensorkeep_ws_clients") == 3

    asyncio.run(run())


def test_filters_take_uuids_and_external_ids_of_equipment_and_sensors() -> None:
    async def run() -> None:
        pubsub = MemoryPubSub()
        hub = Hub(pubsub, Metrics())
        by_name, by_uuid, by_sensor, both, everything = (Recorder() for _ in range(5))
        hub.connect(by_name, "k", 10, ["e1"])
        hub.connect(by_uuid, "k", 10, [external_uuid("e2").upper()])
        hub.connect(by_sensor, "k", 10, ["e3/co2"])
        hub.connect(both, "k", 10, ["e1", "e3/co2", "e3"])
        hub.connect(everything, "k", 10)
        _publish(pubsub, _message(1, "e1"), _message(2, "e2"), _message(3, "e3", "e3/co2"), _message(4, "e3", "e3/x"))
        await _until(lambda: len(everything.received) == 4)
        assert by_name.received == [1]
        assert by_uuid.received == [2]
        assert by_sensor.received == [3]
        assert both.received == [1, 3, 4]

    asyncio.run(run())


def test_the_connections_of_a_key_are_limited_and_come_free_again() -> None:
    async def run() -> None:
        hub = Hub(MemoryPubSub(), Metrics())
        first = hub.connect(Recorder(), "key:a", 2)
        hub.connect(Recorder(), "key:a", 2)
        with pytest.raises(LimitExceeded, match="MAX_WS_CONNECTIONS_PER_KEY"):
            hub.connect(Recorder(), "key:a", 2)
        hub.connect(Recorder(), "key:b", 2)
        hub.disconnect(first)
        hub.disconnect(first)
        hub.connect(Recorder(), "key:a", 2)
        assert hub.client_count == 3

    asyncio.run(run())


def test_nothing_is_wanted_while_nobody_listens() -> None:
    async def run() -> None:
        pubsub = MemoryPubSub()
        hub = Hub(pubsub, Metrics())
        assert not pubsub.wanted(READINGS_CHANNEL)
        client = hub.connect(Recorder(), "k", 1)
        assert pubsub.wanted(READINGS_CHANNEL)
        hub.disconnect(client)
        assert not pubsub.wanted(READINGS_CHANNEL)

    asyncio.run(run())


def test_a_client_is_not_counted_where_listening_is_impossible() -> None:
    async def run() -> None:
        pubsub = MemoryPubSub()
        hub = Hub(pubsub, Metrics())
        pubsub.close()
        with pytest.raises(Unavailable):
            hub.connect(Recorder(), "k", 1)
        assert hub.client_count == 0

    asyncio.run(run())


def test_a_slow_client_loses_the_oldest_and_is_told_before_the_next_while_others_get_all() -> None:
    async def run() -> None:
        pubsub, metrics = MemoryPubSub(), Metrics()
        hub = Hub(pubsub, metrics, queue_messages_max=5)
        slow, fast = Recorder(room=1), Recorder()
        hub.connect(slow, "k", 10)
        hub.connect(fast, "k", 10)
        for i in range(20):
            _publish(pubsub, _message(i))
            await _until(lambda i=i: len(fast.received) == i + 1)  # type: ignore[misc]
        assert slow.received == [0]
        slow.make_room(100)
        assert slow.received == [0, {"type": "gap", "dropped": 14}, 15, 16, 17, 18, 19]
        assert _total(metrics, "sensorkeep_ws_dropped_total") == 14
        assert _total(metrics, "sensorkeep_ws_messages_total") == 26
        _publish(pubsub, _message(20))
        await _until(lambda: slow.received[-1] == 20)

    asyncio.run(run())


def test_what_a_publisher_left_out_is_told_as_a_gap() -> None:
    async def run() -> None:
        pubsub = MemoryPubSub()
        outlet = Recorder()
        Hub(pubsub, Metrics()).connect(outlet, "k", 1)
        _publish(pubsub, _message(1), left_out=3)
        await _until(lambda: len(outlet.received) == 2)
        pubsub.publish(READINGS_CHANNEL, b"\xc1 not an envelope")
        await _until(lambda: len(outlet.received) == 3)
        assert outlet.received == [{"type": "gap", "dropped": 3}, 1, {"type": "gap", "dropped": 1}]

    asyncio.run(run())


def test_messages_published_on_many_threads_all_arrive() -> None:
    async def run() -> None:
        pubsub = MemoryPubSub()
        outlet = Recorder()
        Hub(pubsub, Metrics()).connect(outlet, "k", 1)

        def publish(base: int) -> None:
            for i in range(200):
                _publish(pubsub, _message(base + i))

        threads = [threading.Thread(target=publish, args=(1000 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        await _until(lambda: len(outlet.received) == 800)
        for n in range(4):
            mine = [number for number in outlet.received if number // 1000 == n]
            assert mine == sorted(mine)
        for thread in threads:
            thread.join()

    asyncio.run(run())


def test_revoking_a_credential_ends_its_clients_only() -> None:
    async def run() -> None:
        hub = Hub(MemoryPubSub(), Metrics())
        revoked = hub.connect(Recorder(), "key:a", 10)
        other = hub.connect(Recorder(), "key:b", 10)
        await asyncio.to_thread(hub.revoke, "key:a")
        async with asyncio.timeout(5):
            await revoked.ended.wait()
        assert not other.ended.is_set()

    asyncio.run(run())


def test_the_inbox_stays_within_its_bytes_and_counts_what_it_lost() -> None:
    inbox = Inbox(bytes_max=2_000)
    wakes = [inbox.put(seal([_message(i)])) for i in range(1_000)]
    messages, lost, more = inbox.take(1_000_000)
    assert wakes == [True] + [False] * 999
    assert sum(len(message.body) for message in messages) < 2_000
    assert [int(message.body) for message in messages] == list(range(lost, 1_000))
    assert lost > 900
    assert not more
    assert inbox.put(seal([_message(1)]))


def test_a_burst_is_handed_out_in_slices_so_that_the_loop_can_do_other_work() -> None:
    inbox = Inbox(bytes_max=10_000_000)
    inbox.put(seal([_message(i) for i in range(1_000)]))
    first, _, more = inbox.take(256)
    assert len(first) == 256
    assert more


class _Script:
    """A client under a random schedule of offers and room."""

    def __init__(self, queue_max: int) -> None:
        self.outlet = Recorder(room=0)
        self.client = Client(self.outlet, queue_max, Metrics())
        self.offered = 0

    def offer(self, count: int) -> None:
        frames = [text_frame(json.dumps(self.offered + i).encode()) for i in range(count)]
        self.offered += count
        self.client.offer(frames, b"".join(frames))

    def accounted(self) -> Iterator[int]:
        """The numbers received, with every gap filled in by what it says was lost."""
        expected = 0
        for item in self.outlet.received:
            if isinstance(item, dict):
                expected += item["dropped"]
            else:
                assert item == expected
                expected += 1
                yield item


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), max_size=40))
def test_whatever_happens_each_message_is_received_in_order_or_counted_in_a_gap(
    queue_max: int, steps: list[tuple[int, int]]
) -> None:
    script = _Script(queue_max)
    for count, room in steps:
        script.offer(count)
        script.outlet.make_room(room)
    script.outlet.make_room(10_000)
    received = list(script.accounted())
    gaps = sum(item["dropped"] for item in script.outlet.received if isinstance(item, dict))
    assert len(received) + gaps == script.offered
    if steps:
        assert received[-1] == script.offered - 1
