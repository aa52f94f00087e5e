"""The claim queue on Apache Kafka. `claim_queue` tells how its modules work together."""

from sensorkeep.queue.kafka.claim_queue import KafkaClaimQueue

__all__ = ["KafkaClaimQueue"]
