"""The store itself."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from sensorkeep import limits
from sensorkeep.breaker import Breaker
from sensorkeep.clock import SystemClock
from sensorkeep.errors import BadConfig, Conflict, NotFound, Unavailable
from sensorkeep.object_store.base import StoredObject, check_key, is_key
from sensorkeep.object_store.s3.bucket import check_settings, find_or_make_bucket, start_error
from sensorkeep.object_store.s3.failures import FAILURES, code_of, is_lost, unavailable

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import S3Config

log = structlog.get_logger(__name__)

_TEMPORARY = ".tmp"
"""No key begins with a dot, so no object can be in the way."""
_CHECKED = f"{_TEMPORARY}/check"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


class S3ObjectStore:
    """An ObjectStore in a bucket, which any number of processes share. The bucket is made where there is none.

    `endpoint`: the address of the service; None is AWS. Without keys the client looks for credentials where programs
    on AWS find theirs. Raises BadConfig where a setting is wrong, Unavailable where the service does not answer.

    An object smaller than S3_PART_BYTES is put by one request, on condition that its key is free. A larger one is
    uploaded in parts under a temporary key, and the service copies it to its own on that condition (decision 0008). A
    crash may leave the temporary object behind, which the next start removes a day later, or parts of it, which are
    for the bucket's own lifecycle rules to remove.

    What creates an object is never sent twice, for the second time would find the first one's object. So where the
    answer was lost, Unavailable is raised though the object may be there; whoever put it knows no key to it any more,
    and retention removes it.

    While the service does not answer, one put in S3_PAUSE_SECONDS finds that out, and the others fail at once.
    """

    def __init__(
        self, bucket: str, *, endpoint: str | None, access_key: str | None, secret_key: str | None, region: str
    ) -> None:
        check_settings(bucket, endpoint=endpoint, access_key=access_key, secret_key=secret_key, region=region)
        self._bucket, self._endpoint, self._region = bucket, endpoint, region
        self._keys = None if access_key is None or secret_key is None else (access_key, secret_key)
        self._place = f"the bucket {bucket} at {endpoint or 'AWS'}"
        self._breaker = Breaker(
            SystemClock().monotonic,
            pause_seconds=limits.S3_PAUSE_SECONDS,
            try_seconds_max=limits.S3_REQUEST_SECONDS_MAX + limits.S3_RETRY_SECONDS_MAX,
        )
        self._client = self._connect()
        self._once = self._connect(retries=0)
        self._reader = self._connect(seconds=limits.S3_READ_SECONDS_MAX)
        self._quick = self._connect(seconds=limits.S3_CHECK_SECONDS_MAX)
        find_or_make_bucket(self._client, self._place, region, has_keys=self._keys is not None)
        try:
            self._prove(self._client)
            self._prove_create_only()
        except FAILURES as error:
            raise start_error(error, self._place, has_keys=self._keys is not None) from None
        self._remove_abandoned()

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        check_key(key)
        parts = _parts(chunks)
        first = next(parts)
        if not self._breaker.admit():
            raise Unavailable(f"{self._place} does not answer", code="dependency_down")
        if len(first) < limits.S3_PART_BYTES:
            with self._creating(key), self._noted():
                obstore.put(self._once, key, first, mode="create")
            return len(first)
        temporary = f"{_TEMPORARY}/{uuid.uuid4().hex}"
        size = self._upload(temporary, chain([first], parts))
        try:
            with self._creating(key), self._noted():
                obstore.copy(self._once, temporary, key, overwrite=False)
        finally:
            # What cannot be removed now is removed by a later start.
            with contextlib.suppress(Unavailable):
                self._delete(self._quick, [temporary])
        return size

    def get(self, key: str) -> Iterator[bytes]:
        check_key(key)
        with self._failures():
            try:
                found = obstore.get(self._reader, key)
            except FileNotFoundError as error:
                if code_of(error) == "NoSuchBucket":
                    raise
                raise NotFound(f"there is no object {key}") from None
        return self._read(found)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[StoredObject]:
        if start_after:
            check_key(start_after)
        folder, slash, _ = prefix.rpartition("/")
        if slash and not is_key(folder):
            return iter(())
        return self._list(folder, prefix, start_after)

    def delete(self, *keys: str) -> None:
        for key in keys:
            check_key(key)
        self._delete(self._client, keys)

    def check(self) -> None:
        with self._failures():
            self._prove(self._quick)

    def close(self) -> None:
        """The client holds nothing that must be given back."""

    # --- writing ---

    def _upload(self, key: str, parts: Iterable[bytearray]) -> int:
        """Upload the parts, one on its way while the next is gathered, and return the size of all. Where it fails
        nothing remains."""
        writer = obstore.open_writer(self._client, key, buffer_size=limits.S3_PART_BYTES, max_concurrency=1)
        size = 0
        try:
            for part in parts:
                with self._failures(), self._noted(answers=False):
                    writer.write(part)
                size += len(part)
        except BaseException as error:
            with contextlib.suppress(*FAILURES):
                writer.__exit__(type(error), error, error.__traceback__)  # gives the upload up
            raise
        with self._failures(), self._noted():
            writer.close()
        return size

    @contextlib.contextmanager
    def _creating(self, key: str) -> Iterator[None]:
        """For the request that gives an object its key, on condition that the key is free."""
        with self._failures():
            try:
                yield
            except AlreadyExistsError as error:
                # AWS: two such requests met, and this one is to be sent again later.
                if code_of(error) == "ConditionalRequestConflict":
                    raise
                if self._exists(key):
                    raise Conflict(f"the object {key} exists already", code="already_exists") from None
                raise Conflict(f"{key} is, or was a moment ago, the folder of other objects") from None

    def _exists(self, key: str) -> bool:
        try:
            obstore.head(self._client, key)
        except FileNotFoundError:
            return False
        return True

    def _prove(self, client: S3Store) -> None:
        """Write one small object, always the same. Raises FAILURES."""
        obstore.put(client, _CHECKED, b"\0" * 64, use_multipart=False)

    def _prove_create_only(self) -> None:
        """Raises BadConfig where the service ignores the condition that a key is free. FAILURES otherwise."""
        with contextlib.suppress(AlreadyExistsError):
            obstore.put(self._client, _CHECKED, b"\0", mode="create")
            raise BadConfig(
                f"{self._place} overwrites an object although told not to: is SENSORKEEP_S3_ENDPOINT the address of an"
                " S3 service that knows If-None-Match?"
            )

    # --- reading ---

    def _read(self, found: GetResult) -> Iterator[bytes]:
        with self._failures():
            chunks = found.stream(min_chunk_size=limits.OBJECT_CHUNK_BYTES)
        while True:
            with self._failures():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _list(self, folder: str, prefix: str, start_after: str) -> Iterator[StoredObject]:
        with self._failures():
            pages = obstore.list(
                self._client, folder or None, offset=start_after or None, chunk_size=limits.S3_LISTED_AT_ONCE
            )
        while True:
            with self._failures():
                page = next(pages, None)
            if page is None:
                return
            for found in page:
                key = found["path"]
                if key.startswith(prefix) and is_key(key):
                    yield StoredObject(key, found["size"], (found["last_modified"] - _EPOCH) // _US)

    # --- removing ---

    def _delete(self, client: S3Store, keys: Sequence[str]) -> None:
        if keys:
            with self._failures():
                obstore.delete(client, keys)

    def _remove_abandoned(self) -> None:
        """Temporary objects of puts that ended long ago. Only tidiness, so a failure of it does not matter."""
        with contextlib.suppress(*FAILURES, Unavailable):
            now = obstore.head(self._client, _CHECKED)["last_modified"]  # by the clock of the service
            oldest_kept = now - timedelta(seconds=limits.S3_ABANDONED_SECONDS)
            for page in obstore.list(self._client, _TEMPORARY, chunk_size=limits.S3_LISTED_AT_ONCE):
                self._delete(self._client, [found["path"] for found in page if found["last_modified"] < oldest_kept])

    # --- the client ---

    def _connect(
        self, *, seconds: float = limits.S3_REQUEST_SECONDS_MAX, retries: int = limits.S3_RETRIES_MAX
    ) -> S3Store:
        """A client that gives a whole request, its answer included, so many seconds."""
        config: S3Config = {
            "region": self._region,
            # Atomic on AWS and SeaweedFS, where other ways are not; see decision 0008.
            "copy_if_not_exists": "header:If-None-Match:*",
        }
        if self._endpoint is not None:
            config["endpoint"] = self._endpoint
        if self._keys is not None:
            config["access_key_id"], config["secret_access_key"] = self._keys
        return S3Store(
            self._bucket,
            config=config,
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=limits.S3_CONNECT_SECONDS_MAX),
                "read_timeout": timedelta(seconds=limits.S3_REQUEST_SECONDS_MAX),
                "timeout": timedelta(seconds=seconds),
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=limits.S3_RETRY_SECONDS_MAX),
            },
        )

    @contextlib.contextmanager
    def _noted(self, *, answers: bool = True) -> Iterator[None]:
        """For a request of a put: remember whether the service answered. Not `answers`: it may succeed without."""
        try:
            yield
        except FAILURES as error:
            if not is_lost(error):
                self._breaker.succeeded()
            elif self._breaker.failed():
                log.warning("object_store_lost", detail=unavailable(error, self._place).detail)
            raise
        if answers and self._breaker.succeeded():
            log.info("object_store_reached_again")

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise unavailable(error, self._place) from error


def _parts(chunks: Iterable[bytes]) -> Iterator[bytearray]:
    """The chunks as parts of S3_PART_BYTES, and at their end a shorter one, which may be empty."""
    part = bytearray()
    for chunk in chunks:
        rest = memoryview(chunk)
        while len(part) + len(rest) >= limits.S3_PART_BYTES:
            room = limits.S3_PART_BYTES - len(part)
            part += rest[:room]
            rest = rest[room:]
            yield part
            part = bytearray()
        part += rest
    yield part
