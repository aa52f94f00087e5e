"""By which settings of its topic a published claim may be lost, without Kafka."""

from __future__ import annotations

import pytest

from sensorkeep.queue.kafka.topic import Topic, unsafe_settings


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_a_claim_of_a_topic_that_we_make_is_on_two_machines_or_on_a_disk(copies: int) -> None:
    settings = Topic("claims", 4, copies).settings()
    assert int(settings["min.insync.replicas"]) >= 2 or settings["flush.messages"] == "1"
    assert unsafe_settings(settings, copies) == {}


@pytest.mark.parametrize(
    ("copies", "changed", "unsafe"),
    [
        (1, {"flush.messages": "9223372036854775807"}, ["flush.messages"]),
        (1, {"flush.messages": "9223372036854775807", "min.insync.replicas": "2"}, ["flush.messages"]),
        (2, {"flush.messages": None}, ["flush.messages", "min.insync.replicas"]),
        (3, {"min.insync.replicas": "1"}, ["flush.messages", "min.insync.replicas"]),
        (3, {"min.insync.replicas": "1", "flush.messages": "1"}, []),
        (3, {"unclean.leader.election.enable": "true"}, ["unclean.leader.election.enable"]),
        (1, {"unclean.leader.election.enable": "true"}, []),
    ],
)
def test_a_setting_by_which_one_machine_may_lose_a_claim_is_found(
    copies: int, changed: dict[str, str | None], unsafe: list[str]
) -> None:
    assert list(unsafe_settings({**Topic("claims", 4, copies).settings(), **changed}, copies)) == unsafe
