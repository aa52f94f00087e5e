"""A worker process for the tests, of the given brokers and topic: it takes ten claims and tells their names.

Then it acknowledges as many of them as a line of its standard input says.
"""

from __future__ import annotations

import sys

from sensorkeep.clock import SystemClock
from sensorkeep.queue.base import Delivery
from sensorkeep.queue.kafka import KafkaClaimQueue


def main(brokers: str, topic: str) -> None:
    queue = KafkaClaimQueue(
        brokers, topic, clock=SystemClock(), partitions=4, replication_factor=1, consume=True, security={}, group=topic
    )
    held: list[Delivery] = []
    while len(held) < 10:
        held += queue.fetch(10 - len(held), 1_000, 1.0)
    print(*(delivery.claim.batch_id for delivery in held), flush=True)
    for line in sys.stdin:
        queue.ack(held[: int(line)])
        print("acknowledged", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
