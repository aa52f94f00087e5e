"""Publish/subscribe between processes, through Valkey: here each ValkeyPubSub stands for a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pubsub_world import Listener, valkey_pubsub, wait_until
from redis import RedisError

from sensorkeep.errors import BadConfig, Unavailable
from sensorkeep.limits import PUBSUB_WAITING_BYTES_MAX, VALKEY_CONNECTIONS_MAX
from sensorkeep.metrics import Metrics
from sensorkeep.pubsub.valkey import ValkeyPubSub
from sensorkeep.pubsub.valkey_sender import Sender
from sensorkeep.valkey import Client, Result, Valkey
from services import new_name
from services.valkey import Valkey as ValkeyService

pytestmark = pytest.mark.distributed

Pair = tuple[ValkeyPubSub, ValkeyPubSub]


@pytest.fixture
def pair() -> Iterator[Pair]:
    prefix = new_name("test")
    one, other = valkey_pubsub(prefix), valkey_pubsub(prefix)
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def private(tmp_path: Path) -> Iterator[ValkeyService]:
    with ValkeyService(tmp_path / "valkey") as service:
        yield service


@pytest.fixture
def metrics() -> Metrics:
    """Those of the first process of a private pair."""
    return Metrics()


@pytest.fixture
def private_pair(private: ValkeyService, metrics: Metrics) -> Iterator[Pair]:
    one, other = valkey_pubsub("test", private.url, metrics), valkey_pubsub("test", private.url)
    yield one, other
    one.close()
    other.close()


def heard_by(listener: Listener, publisher: ValkeyPubSub, message: bytes = b"again") -> bool:
    """Publish until it is heard: a subscription takes its time to reach the server."""
    publisher.publish("a", message)
    time.sleep(0.02)
    return message in listener.heard


def dropped(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("sensorkeep_pubsub_dropped_total") or 0.0


def has_failed(pubsub: ValkeyPubSub) -> bool:
    try:
        pubsub.check()
    except Unavailable:
        return True
    return False


def test_a_message_reaches_the_listeners_of_every_process_once(pair: Pair) -> None:
    one, other = pair
    here, there, twice = Listener(), Listener(), Listener()
    one.subscribe("a", here)
    other.subscribe("a", there)
    other.subscribe("a", twice)
    wait_until(lambda: heard_by(there, one, b"begin"))
    started = here.heard.count(b"begin")
    one.publish("a", b"1")
    one.publish("a", b"2")
    for listener in (there, twice):
        wait_until(lambda listener=listener: b"2" in listener.heard)  # type: ignore[misc]
        assert listener.heard[-2:] == [b"1", b"2"]
    other.publish("a", b"end")
    wait_until(lambda: b"end" in here.heard)
    # Everything that Valkey gave back of the process's own messages came before that.
    assert here.heard == [b"begin"] * started + [b"1", b"2", b"end"]


def test_messages_of_one_publisher_arrive_in_order_in_another_process(pair: Pair) -> None:
    one, other = pair
    there = Listener()
    other.subscribe("a", there)
    wait_until(lambda: heard_by(there, one))
    before = len(there.heard)
    messages = [b"%d" % i for i in range(5000)]
    for message in messages:
        one.publish("a", message)
    wait_until(lambda: there.heard[-1] == messages[-1])
    assert [message for message in there.heard[before:] if message != b"again"] == messages


def test_a_channel_is_wanted_as_soon_as_another_process_listens_and_no_longer_when_it_has_left(pair: Pair) -> None:
    one, other = pair
    assert one.wanted("a"), "what is not known yet is wanted"
    wait_until(lambda: not one.wanted("a"))
    for _ in range(3):
        there = Listener()
        leave = other.subscribe("a", there)
        wait_until(lambda: one.wanted("a"), 0.9)  # sooner than it is asked for
        one.publish("a", b"1")
        there.wait_for(1)
        leave()
        wait_until(lambda: not one.wanted("a"))


def test_after_a_process_has_left_a_channel_it_hears_nothing_more(pair: Pair) -> None:
    one, other = pair
    gone, kept = Listener(), Listener()
    leave = other.subscribe("a", gone)
    other.subscribe("b", kept)
    wait_until(lambda: heard_by(gone, one))
    leave()
    heard = len(gone.heard)
    one.publish("a", b"1")
    one.publish("b", b"2")
    assert kept.wait_for(1) == [b"2"]
    assert len(gone.heard) == heard


def test_installations_with_other_prefixes_do_not_hear_each_other(pair: Pair) -> None:
    one, other = pair
    stranger, there = Listener(), Listener()
    third = valkey_pubsub()
    third.subscribe("a", stranger)
    other.subscribe("a", there)
    wait_until(lambda: heard_by(there, one))
    assert stranger.heard == []
    third.close()


def test_without_valkey_a_process_hears_itself_and_after_it_everybody_hears_again(
    private: ValkeyService, private_pair: Pair, metrics: Metrics
) -> None:
    one, other = private_pair
    here, there = Listener(), Listener()
    one.subscribe("a", here)
    other.subscribe("a", there)
    wait_until(lambda: heard_by(there, one))
    for _ in range(2):
        private.kill()
        wait_until(lambda: has_failed(one) and has_failed(other))
        wait_until(lambda: not one.wanted("b"))
        here.heard.clear()
        for i in range(100):
            one.publish("a", b"%d" % i)
        assert here.heard == [b"%d" % i for i in range(100)]
        assert one.wanted("a")
        private.start()
        there.heard.clear()
        wait_until(lambda: heard_by(there, one, b"back") and heard_by(here, other, b"forth"))
        wait_until(lambda: not has_failed(one) and not has_failed(other))
        assert set(there.heard) <= {b"back", b"forth"}, "what waited came late"
    assert dropped(metrics) >= 200


def test_a_valkey_that_hangs_holds_nobody_up(private: ValkeyService, private_pair: Pair) -> None:
    one, other = private_pair
    here, there = Listener(), Listener()
    one.subscribe("a", here)
    other.subscribe("a", there)
    wait_until(lambda: heard_by(there, one))
    private.pause()
    try:
        began = time.monotonic()
        for i in range(1000):
            one.publish("a", b"%d" % i)
            one.wanted("b")
        assert time.monotonic() - began < 0.5
        began = time.monotonic()
        with pytest.raises(Unavailable):
            one.check()
        assert time.monotonic() - began < 1.5
        assert here.heard[-1] == b"999"
    finally:
        private.resume()
    wait_until(lambda: heard_by(there, one, b"back"))
    wait_until(lambda: not has_failed(one))


def test_what_others_miss_is_counted_and_not_what_keeps_the_subscriptions(
    private: ValkeyService, private_pair: Pair, metrics: Metrics
) -> None:
    one, _ = private_pair
    private.kill()
    wait_until(lambda: has_failed(one))
    for _ in range(5):
        one.subscribe("b", Listener())()
    one.publish("a", b"1")
    wait_until(lambda: dropped(metrics) >= 1)
    assert dropped(metrics) == 1


def test_what_was_sent_is_not_counted_where_valkey_is_lost_after_it(
    private: ValkeyService, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LostWhenAsked(Valkey):
        """Takes messages, and does not tell who listens."""

        def run(self, work: Callable[[Client], Result]) -> Result:
            if work.__name__ != "publish":
                raise Unavailable("lost")
            return super().run(work)

    monkeypatch.setattr("sensorkeep.pubsub.valkey_sender.PUBSUB_LISTENERS_SECONDS", 3600.0)
    there = Listener()
    one, other = valkey_pubsub("test", private.url), valkey_pubsub("test", private.url)
    other.subscribe("a", there)
    wait_until(lambda: heard_by(there, one))
    one.close()
    sender = Sender(LostWhenAsked(private.url, prefix="test"), metrics)
    wait_until(lambda: not sender.has_listener("b"))  # the first question has failed, and the next is far away
    with sender._changed:  # so that one round of the thread does both
        sender.put("a", b"its name1")  # the publisher's id has 8 bytes
        sender.has_listener("c")
    sender.close()
    wait_until(lambda: b"1" in there.heard)
    assert dropped(metrics) == 0
    other.close()


def test_what_waits_for_valkey_is_bounded_and_the_oldest_go(
    private: ValkeyService, private_pair: Pair, metrics: Metrics
) -> None:
    one, _ = private_pair
    one.check()
    private.pause()
    try:
        message = bytes(PUBSUB_WAITING_BYTES_MAX // 16)
        for _ in range(40):
            one.publish("a", message)
        assert one._sender._waiting_bytes <= PUBSUB_WAITING_BYTES_MAX
        wait_until(lambda: dropped(metrics) >= 23)
    finally:
        private.resume()


def test_what_was_published_last_is_sent_before_it_is_closed(pair: Pair) -> None:
    one, other = pair
    there = Listener()
    other.subscribe("a", there)
    wait_until(lambda: heard_by(there, one))
    for i in range(50):
        one.publish("a", b"%d" % i)
    one.close()
    wait_until(lambda: there.heard[-1] == b"49")


class Locked(ValkeyService):
    """A server that asks for a password."""

    def command(self) -> list[str]:
        return [*super().command(), "--requirepass", "se/cret pass"]

    def is_ready(self) -> bool:
        return super().is_ready() or "Ready to accept" in self.log_tail()


def test_a_password_goes_with_the_url_and_is_never_shown(tmp_path: Path) -> None:
    with Locked(tmp_path / "valkey") as service:
        good = ValkeyPubSub(Valkey(service.url.replace("redis://", "redis://:se%2Fcret%20pass@")))
        good.check()
        good.close()
        bad = ValkeyPubSub(Valkey(service.url.replace("redis://", "redis://:se%2Fcret%20word@")))
        with pytest.raises(Unavailable) as caught:
            bad.check()
        assert "cret" not in str(caught.value)
        bad.close()


@pytest.mark.parametrize("url", ["http://secret@x", "redis://x:secret", "not a url with a secret"])
def test_a_url_that_cannot_be_used_is_a_bad_config_that_shows_none_of_it(url: str) -> None:
    with pytest.raises(BadConfig) as caught:
        Valkey(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_yet_is_found_when_it_comes(private: ValkeyService) -> None:
    private.kill()
    one, other = valkey_pubsub("test", private.url), valkey_pubsub("test", private.url)
    there = Listener()
    other.subscribe("a", there)
    assert has_failed(one)
    private.start()
    wait_until(lambda: heard_by(there, one))
    one.close()
    other.close()


def test_tries_to_connect_use_up_none_of_the_connections_that_others_share(private: ValkeyService) -> None:
    private.kill()
    valkey = Valkey(private.url)
    for _ in range(VALKEY_CONNECTIONS_MAX + 1):
        with pytest.raises(RedisError):
            valkey.connection().connect()
    private.start()
    connection = valkey.connection()
    connection.connect()
    valkey.check()
    connection.disconnect()
    valkey.close()


def test_that_all_connections_are_in_use_is_no_outage(private: ValkeyService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorkeep.valkey.VALKEY_CONNECTIONS_MAX", 1)
    valkey = Valkey(private.url)

    def ask_while_it_is_held(client: Client) -> None:
        with client.pipeline() as held:
            held.watch("a")
            with pytest.raises(Unavailable, match="in use"):
                valkey.check()
            assert valkey.up

    valkey.run(ask_while_it_is_held)
    valkey.check()
    valkey.close()


def test_a_call_whose_client_is_closed_meanwhile_says_so(private: ValkeyService) -> None:
    valkey = Valkey(private.url)

    def close_and_read_on(client: Client) -> None:
        client.ping()
        valkey.close()
        raise ValueError("I/O operation on closed file.")  # what redis-py says where it has read half an answer

    with pytest.raises(Unavailable, match="closed"):
        valkey.run(close_and_read_on)
