"""The Prometheus metrics of a process, in one registry that is made at start and handed on (no global state)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Every metric by name. Durations are in seconds, sizes in bytes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.request_seconds = Histogram(
            "sensorkeep_request_seconds",
            "Request latency.",
            ["method", "route", "status"],
            registry=r,
            buckets=_LATENCY_BUCKETS,
        )
        self.readings_received = Counter(
            "sensorkeep_readings_received", "Readings accepted, quarantined ones included.", registry=r
        )
        self.readings_stored = Counter("sensorkeep_readings_stored", "New readings written.", registry=r)
        self.readings_updated = Counter(
            "sensorkeep_readings_updated", "Readings that replaced another value.", registry=r
        )
        self.readings_duplicate = Counter(
            "sensorkeep_readings_duplicate", "Readings that were known already.", registry=r
        )
        self.readings_quarantined = Counter(
            "sensorkeep_readings_quarantined", "Readings set aside.", ["reason"], registry=r
        )
        self.ingest_bytes = Counter("sensorkeep_ingest_bytes", "Request body bytes accepted, as sent.", registry=r)
        self.commit_seconds = Histogram(
            "sensorkeep_commit_seconds",
            "Making claims durable, per group commit.",
            registry=r,
            buckets=_LATENCY_BUCKETS,
        )
        self.write_seconds = Histogram(
            "sensorkeep_write_seconds",
            "One write transaction of the time series store.",
            registry=r,
            buckets=_LATENCY_BUCKETS,
        )
        self.settle_seconds = Histogram(
            "sensorkeep_settle_seconds", "One merge of late readings.", registry=r, buckets=_LATENCY_BUCKETS
        )
        self.worker_failures = Counter(
            "sensorkeep_worker_failures", "Rounds of the worker that failed.", ["code"], registry=r
        )
        self.queue_depth = Gauge("sensorkeep_queue_depth", "Claims waiting.", registry=r)
        self.queue_oldest_seconds = Gauge(
            "sensorkeep_queue_oldest_seconds", "Age of the oldest waiting claim.", registry=r
        )
        self.readings_pending = Gauge(
            "sensorkeep_readings_pending", "Readings accepted and not yet settled.", registry=r
        )
        self.ws_clients = Gauge("sensorkeep_ws_clients", "Open WebSockets.", registry=r)
        self.ws_messages = Counter("sensorkeep_ws_messages", "Live messages handed to clients.", registry=r)
        self.ws_dropped = Counter("sensorkeep_ws_dropped", "Live messages dropped for slow clients.", registry=r)
        self.pubsub_dropped = Counter(
            "sensorkeep_pubsub_dropped", "Messages to other processes that Valkey did not take.", registry=r
        )
        self.disk_bytes = Gauge("sensorkeep_disk_bytes", "Bytes on disk.", ["part"], registry=r)
        self.disk_free_bytes = Gauge(
            "sensorkeep_disk_free_bytes", "Free bytes of the data directory's file system.", registry=r
        )
