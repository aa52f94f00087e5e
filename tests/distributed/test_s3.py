"""Objects on a real S3 service: what a start says of wrong settings, outages, power cuts, memory and retention."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import obstore
import pytest
from obstore.store import S3Store

from sensorkeep import limits
from sensorkeep.catalog.base import Batch
from sensorkeep.clock import DAY_US, ManualClock
from sensorkeep.errors import BadConfig, Conflict, NotFound, SensorkeepError, Unavailable
from sensorkeep.object_store.s3 import S3ObjectStore
from sensorkeep.worker.housekeeping import Housekeeper
from services import S3_ENDPOINT, address, new_name
from services.process import free_ports
from services.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

pytestmark = pytest.mark.distributed

OUTAGE_SECONDS_MAX = 5.5
"""An outage is told within this."""
MEMORY_GROWTH_BYTES_MAX = 5 * limits.S3_PART_BYTES
"""What an object of any size may take: a part on its way and one that is gathered, and what the allocator keeps."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A service of this module's own, which it may stop."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as service:
        yield service


def open_store(endpoint: str, **changes: Any) -> S3ObjectStore:
    settings = {
        "bucket": new_name("objects"), "endpoint": endpoint, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY,
        "region": "us-east-1",
    }  # fmt: skip
    return S3ObjectStore(**settings | changes)


def keys(store: S3ObjectStore) -> list[str]:
    return [found.key for found in store.list()]


def client(endpoint: str, bucket: str) -> S3Store:
    """The bucket as it is."""
    return S3Store(
        bucket, endpoint=endpoint, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, region="us-east-1",
        client_options={"allow_http": True},
    )  # fmt: skip


def everything(endpoint: str, bucket: str) -> set[str]:
    """Every key in the bucket, those that the store keeps for itself as well."""
    return {found["path"] for page in obstore.list(client(endpoint, bucket)) for found in page}


# --- the start ---


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_a_missing_bucket_is_made_and_one_that_is_there_is_used(region: str) -> None:
    bucket = new_name("objects")
    first = open_store(address(S3_ENDPOINT), bucket=bucket, region=region)
    first.put("a", [b"1"])
    second = open_store(address(S3_ENDPOINT), bucket=bucket, region=region)
    assert b"".join(second.get("a")) == b"1"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"access_key": "nobody"}, "SENSORKEEP_S3_ACCESS_KEY"),
        ({"secret_key": "another-secret"}, "SENSORKEEP_S3_SECRET_KEY"),
        ({"access_key": None}, "SENSORKEEP_S3_ACCESS_KEY"),
        ({"secret_key": None}, "SENSORKEEP_S3_SECRET_KEY"),
        ({"access_key": "key with\nspaces"}, "SENSORKEEP_S3_ACCESS_KEY"),
        ({"bucket": "Not A Bucket"}, "SENSORKEEP_OBJECT_STORE_URL"),
        ({"bucket": "bucket/prefix"}, "SENSORKEEP_OBJECT_STORE_URL"),
        ({"region": "us east"}, "SENSORKEEP_S3_REGION"),
        ({"endpoint": "seaweedfs:8333"}, "SENSORKEEP_S3_ENDPOINT"),
        ({"endpoint": "http://bad host"}, "SENSORKEEP_S3_ENDPOINT"),
        ({"endpoint": "http://user:password@127.0.0.1:80"}, "SENSORKEEP_S3_ENDPOINT"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_its_name_and_no_secret(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadConfig) as caught:
        open_store(**{"endpoint": address(S3_ENDPOINT)} | changes)
    assert named in caught.value.detail
    for secret in (SECRET_KEY, "another-secret", "password"):
        assert secret not in f"{caught.value.detail} {caught.value.__cause__}"


def test_an_endpoint_where_nothing_listens_is_named_at_the_start() -> None:
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=rf"127.0.0.1:{port} cannot be reached .SENSORKEEP_S3_ENDPOINT"):
        open_store(f"http://127.0.0.1:{port}")
    assert time.monotonic() - started < OUTAGE_SECONDS_MAX


def test_an_endpoint_that_is_no_s3_service_is_named_at_the_start(service: SeaweedFS) -> None:
    with pytest.raises(SensorkeepError, match="SENSORKEEP_S3_ENDPOINT"):
        open_store(f"http://127.0.0.1:{service._volume}")


class Restricted(SeaweedFS):
    """Knows one more user, who may only read and list the bucket `there`."""

    def prepare(self) -> None:
        super().prepare()
        identities = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET_KEY}], "actions": actions}
            for name, actions in ((ACCESS_KEY, ["Admin"]), ("reader", ["Read:there", "List:there"]))
        ]
        (self.folder / "identities.json").write_text(json.dumps({"identities": identities}))

    def command(self) -> list[str]:
        return [*super().command(), f"-s3.config={self.folder / 'identities.json'}"]

    def environment(self) -> dict[str, str]:
        return {}


def test_a_bucket_that_may_not_be_made_or_written_stops_the_start(tmp_path: Path) -> None:
    with Restricted(tmp_path) as service:
        open_store(service.endpoint, bucket="there")
        for bucket, said in (
            ("absent", "SENSORKEEP_OBJECT_STORE_URL|SENSORKEEP_S3_ACCESS_KEY"),
            ("there", "may not use it"),
        ):
            with pytest.raises(BadConfig, match=said):
                open_store(service.endpoint, bucket=bucket, access_key="reader")


# --- outages ---


def refused_in_time(act: Any) -> None:
    """`act` fails as an outage, soon."""
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        act()
    assert time.monotonic() - started < OUTAGE_SECONDS_MAX
    assert caught.value.code == "dependency_down"
    assert caught.value.retry_after_seconds


def put_after_outage(store: S3ObjectStore, key: str, chunks: list[bytes]) -> int:
    """Put once the service is back: the store finds that out by a put that it lets through once a second."""
    deadline = time.monotonic() + OUTAGE_SECONDS_MAX
    while True:
        try:
            return store.put(key, chunks)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("hangs", [False, True])
def test_an_outage_is_told_soon_by_every_method_and_ends_by_itself(service: SeaweedFS, hangs: bool) -> None:
    store = open_store(service.endpoint)
    store.put("before", [b"kept"])
    if hangs:
        service.pause()
    else:
        service.kill()
    try:
        for act in (
            lambda: store.put("during", [b"x"]),
            lambda: store.get("before"),
            lambda: keys(store),
            lambda: store.delete("before"),
            store.check,
        ):
            refused_in_time(act)
        with pytest.raises(Unavailable, match="SENSORKEEP_S3_ENDPOINT"):
            open_store(service.endpoint)
    finally:
        if hangs:
            service.resume()
        else:
            service.start()
    assert put_after_outage(store, "after", [b"x"]) == 1
    if not hangs:  # a request that hangs may be done later, after its sender was told that it failed
        assert store.put("during", [b"x"]) == 1
        assert keys(store) == ["after", "before", "during"]
    store.check()


def test_a_service_that_dies_during_an_upload_leaves_nothing_and_the_object_can_be_put_again(
    service: SeaweedFS,
) -> None:
    bucket = new_name("objects")
    store = open_store(service.endpoint, bucket=bucket)
    piece = b"x" * (limits.S3_PART_BYTES // 2)
    killed = 0.0

    def chunks() -> Iterator[bytes]:
        nonlocal killed
        for number in range(8):
            if number == 5:
                service.kill()
                killed = time.monotonic()
            yield piece

    with pytest.raises(Unavailable):
        store.put("a/large", chunks())
    assert time.monotonic() - killed < OUTAGE_SECONDS_MAX
    service.start()
    assert keys(store) == []
    assert put_after_outage(store, "a/large", [piece] * 8) == 8 * len(piece)
    assert everything(service.endpoint, bucket) == {"a/large", ".tmp/check"}


def test_objects_survive_a_power_cut(service: SeaweedFS) -> None:
    store = open_store(service.endpoint)
    large = [bytes([number]) * limits.S3_PART_BYTES for number in range(3)]
    store.put("small", [b"1"])
    store.put("large", large)
    service.kill()
    service.start()
    assert b"".join(store.get("small")) == b"1"
    assert b"".join(store.get("large")) == b"".join(large)
    with pytest.raises(Conflict):
        store.put("small", [b"2"])


def test_what_a_crash_left_of_an_upload_goes_with_a_later_start(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = new_name("objects")
    store = open_store(address(S3_ENDPOINT), bucket=bucket)
    store._upload(".tmp/left", [bytearray(b"x")])
    store.put("kept", [b"x"])
    open_store(address(S3_ENDPOINT), bucket=bucket)
    assert everything(address(S3_ENDPOINT), bucket) == {".tmp/check", ".tmp/left", "kept"}
    monkeypatch.setattr(limits, "S3_ABANDONED_SECONDS", -1)
    open_store(address(S3_ENDPOINT), bucket=bucket)
    assert everything(address(S3_ENDPOINT), bucket) - {".tmp/check"} == {"kept"}


def test_a_bucket_that_was_removed_is_an_outage_and_no_missing_object(service: SeaweedFS) -> None:
    bucket = new_name("objects")
    store = open_store(service.endpoint, bucket=bucket)
    raw = client(service.endpoint, bucket)
    obstore.delete(raw, ".tmp/check")
    url = obstore.sign(raw, "DELETE", "", timedelta(seconds=60))
    urlopen(Request(url, method="DELETE"), timeout=10).close()
    for act in (lambda: store.get("a"), lambda: store.put("a", [b"x"]), store.check):
        refused_in_time(act)


# --- memory ---

MEASURE = """
import re, sys
from pathlib import Path
from sensorkeep.object_store.s3 import S3ObjectStore

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

bucket, endpoint, access_key, secret_key = sys.argv[1:]
store = S3ObjectStore(bucket, endpoint=endpoint, access_key=access_key, secret_key=secret_key, region="us-east-1")
store.put("first", [b"x" * 65536] * 16)
sum(map(len, store.get("first")))
for number in range(3):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    size = store.put(f"large-{number}", (bytes([i % 256]) * 65536 for i in range(1024)))
    assert sum(map(len, store.get(f"large-{number}"))) == size == 64 << 20
    print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_an_object_of_64_mib_takes_the_memory_of_its_parts_only() -> None:
    arguments = [new_name("objects"), address(S3_ENDPOINT), ACCESS_KEY, SECRET_KEY]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    growths = [int(line) for line in done.stdout.split()]
    print(f"growth in MiB: {[growth >> 20 for growth in growths]}")
    assert max(growths) < MEMORY_GROWTH_BYTES_MAX


# --- retention ---


class Rest:
    """What retention asks besides the object store: nothing waits, nothing else is kept."""

    oldest_us = None

    def depth(self) -> Rest:
        return self

    def purge(self, before_us: int) -> None:
        pass

    def batches(self, state: str, limit: int, before: tuple[int, str]) -> list[Batch]:
        return []


def test_retention_deletes_old_payloads_together_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAYLOADS_DELETED_AT_ONCE", 10)
    store = open_store(address(S3_ENDPOINT))
    clock = ManualClock(int(datetime(2026, 11, 22, tzinfo=UTC).timestamp()) * 1_000_000)
    moments = [datetime.fromtimestamp((clock.now_us() - hours * DAY_US // 24) // 1_000_000, UTC) for hours in range(48)]
    for moment in moments:
        store.put(f"telemetry/{moment:%Y-%m-%d-%H-%M-%S}/payload.json.gz", [b"x"])
    store.put("other/object", [b"x"])
    rest: Any = Rest()
    Housekeeper(object_store=store, queue=rest, ledger=rest, clock=clock, retention_days=1)()
    kept = sorted(f"telemetry/{moment:%Y-%m-%d-%H-%M-%S}/payload.json.gz" for moment in moments[:25])
    assert keys(store) == ["other/object", *kept]
    with pytest.raises(NotFound):
        store.get(f"telemetry/{moments[25]:%Y-%m-%d-%H-%M-%S}/payload.json.gz")
