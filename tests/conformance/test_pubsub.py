"""What every publish/subscribe must do; see pubsub/base.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from pubsub_world import Listener, valkey_pubsub

from sensorkeep.errors import Unavailable
from sensorkeep.pubsub.base import PubSub
from sensorkeep.pubsub.memory import MemoryPubSub

MAKERS: dict[str, Callable[[], PubSub]] = {"memory": MemoryPubSub, "valkey": valkey_pubsub}


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.distributed)])
def pubsub(request: pytest.FixtureRequest) -> Iterator[PubSub]:
    made = MAKERS[request.param]()
    yield made
    made.close()
    made.close()


def test_every_subscriber_of_the_channel_hears_each_message_in_order(pubsub: PubSub) -> None:
    first, second, other = Listener(), Listener(), Listener()
    pubsub.subscribe("a", first)
    pubsub.subscribe("a", second)
    pubsub.subscribe("b", other)
    messages = [b"%d" % i for i in range(100)]
    for message in messages:
        pubsub.publish("a", message)
    pubsub.publish("b", b"end")
    assert first.wait_for(100) == second.wait_for(100) == messages
    assert other.wait_for(1) == [b"end"]


def test_a_message_without_listeners_is_no_error_and_is_not_kept(pubsub: PubSub) -> None:
    pubsub.publish("a", b"lost")
    listener = Listener()
    pubsub.subscribe("a", listener)
    pubsub.publish("a", b"heard")
    assert listener.wait_for(1) == [b"heard"]


def test_after_unsubscribe_nothing_is_heard(pubsub: PubSub) -> None:
    gone, kept = Listener(), Listener()
    leave = pubsub.subscribe("a", gone)
    pubsub.subscribe("a", kept)
    leave()
    leave()
    pubsub.publish("a", b"1")
    assert kept.wait_for(1) == [b"1"]
    assert gone.heard == []


def test_one_callback_subscribed_twice_is_called_twice(pubsub: PubSub) -> None:
    listener = Listener()
    leave = pubsub.subscribe("a", listener)
    pubsub.subscribe("a", listener)
    pubsub.publish("a", b"1")
    assert listener.wait_for(2) == [b"1", b"1"]
    leave()
    pubsub.publish("a", b"2")
    assert listener.wait_for(3) == [b"1", b"1", b"2"]


def test_a_channel_is_wanted_while_somebody_listens(pubsub: PubSub) -> None:
    leave = pubsub.subscribe("a", Listener())
    assert pubsub.wanted("a")
    leave()


def test_callbacks_may_subscribe_and_leave(pubsub: PubSub) -> None:
    late, heard = Listener(), Listener()

    def callback(message: bytes) -> None:
        leave()
        pubsub.subscribe("a", late)
        heard(message)

    leave = pubsub.subscribe("a", callback)
    pubsub.publish("a", b"1")
    heard.wait_for(1)
    pubsub.publish("a", b"2")
    assert late.wait_for(1) == [b"2"]
    assert heard.heard == [b"1"]


def test_messages_of_one_publisher_stay_in_order_beside_others(pubsub: PubSub) -> None:
    listener = Listener()
    pubsub.subscribe("a", listener)

    def publish(name: int) -> None:
        for i in range(100):
            pubsub.publish("a", b"%c%d" % (name, i))

    threads = [threading.Thread(target=publish, args=(name,)) for name in b"xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = listener.wait_for(300)
    for name in b"xyz":
        assert [message for message in heard if message[0] == name] == [b"%c%d" % (name, i) for i in range(100)]


def test_closed_it_hands_out_nothing(pubsub: PubSub) -> None:
    listener = Listener()
    pubsub.subscribe("a", listener)
    pubsub.check()
    pubsub.close()
    pubsub.publish("a", b"1")
    assert listener.heard == []
    for act in (pubsub.check, lambda: pubsub.subscribe("a", listener)):
        with pytest.raises(Unavailable):
            act()


def test_nobody_listening_in_one_process_means_not_wanted() -> None:
    pubsub = MemoryPubSub()
    assert not pubsub.wanted("a")
    leave = pubsub.subscribe("a", Listener())
    leave()
    assert not pubsub.wanted("a")
