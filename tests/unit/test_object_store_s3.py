"""What the S3 object store makes of answers that the service of the tests never gives: those of AWS and of others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from harness import wait_until

from sensorkeep.errors import BadConfig, Conflict, SensorkeepError, Unavailable
from sensorkeep.object_store.s3 import S3ObjectStore

Answer = tuple[int, str]
"""Status and S3's code, "" for no document."""
SECRET = "the secret of the tests"
EMPTY_LIST = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>'


@contextmanager
def service(answer: Callable[[str, str, bool], Answer]) -> Iterator[str]:
    """An address where `answer` (method, path, whether it is to be created only) decides about all but the list."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, code = answer(self.command, self.path.partition("?")[0], "If-None-Match" in self.headers)
            body = f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>" if code else ""
            if status == 200 and self.command == "GET":
                body = EMPTY_LIST
            self.send_response(status)
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815 - so the base class calls them

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def open_store(endpoint: str) -> S3ObjectStore:
    return S3ObjectStore("bucket", endpoint=endpoint, access_key="key", secret_key=SECRET, region="us-east-1")


def well(method: str, path: str, create_only: bool) -> Answer:
    """As a service that works: what is to be created only is the object that the start has written."""
    return (412, "PreconditionFailed") if create_only and path.endswith("/check") else (200, "")


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((301, ""), BadConfig, "SENSORKEEP_S3_REGION"),
        ((400, "AuthorizationHeaderMalformed"), BadConfig, "SENSORKEEP_S3_REGION"),
        ((403, "RequestTimeTooSkewed"), BadConfig, "clock"),
        ((403, "AccessDenied"), BadConfig, "SENSORKEEP_S3_ACCESS_KEY"),
        ((403, ""), BadConfig, "SENSORKEEP_S3_ACCESS_KEY"),
        ((404, ""), BadConfig, "SENSORKEEP_S3_ENDPOINT"),
        ((503, "SlowDown"), Unavailable, "SlowDown"),
    ],
)
def test_what_the_service_says_at_the_start_is_told_as_what_to_change(
    answer: Answer, kind: type[SensorkeepError], said: str
) -> None:
    with service(lambda *_: answer) as endpoint, pytest.raises(kind, match=said) as caught:
        open_store(endpoint)
    assert SECRET not in caught.value.detail


def test_a_bucket_of_somebody_else_stops_the_start() -> None:
    def answer(method: str, path: str, create_only: bool) -> Answer:
        return (409, "BucketAlreadyExists") if method == "PUT" else (404, "NoSuchBucket")

    with service(answer) as endpoint, pytest.raises(BadConfig, match=r"somebody else.*SENSORKEEP_OBJECT_STORE_URL"):
        open_store(endpoint)


def test_a_service_that_overwrites_although_told_not_to_stops_the_start() -> None:
    with (
        service(lambda *_: (200, "")) as endpoint,
        pytest.raises(BadConfig, match=r"SENSORKEEP_S3_ENDPOINT.*If-None-Match"),
    ):
        open_store(endpoint)


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ((409, "ConditionalRequestConflict"), Unavailable, "dependency_down"),
        ((507, "XMinioStorageFull"), Unavailable, "disk_full"),
        ((507, ""), Unavailable, "disk_full"),
        ((403, "InvalidAccessKeyId"), Unavailable, "dependency_down"),
        ((404, "NoSuchBucket"), Unavailable, "dependency_down"),
        ((500, "InternalError"), Unavailable, "dependency_down"),
        ((412, "PreconditionFailed"), Conflict, "already_exists"),
    ],
)
def test_what_the_service_says_to_a_put_becomes_its_error(
    answer: Answer, kind: type[SensorkeepError], code: str
) -> None:
    requests = []

    def put_fails(method: str, path: str, create_only: bool) -> Answer:
        if path.endswith("/a"):
            requests.append(method)
        return answer if method == "PUT" and path.endswith("/a") else well(method, path, create_only)

    with service(put_fails) as endpoint:
        store = open_store(endpoint)
        with pytest.raises(kind) as caught:
            store.put("a", [b"x"])
    assert caught.value.code == code
    assert SECRET not in caught.value.detail
    assert requests.count("PUT") == 1, "what creates an object is never sent twice"


def test_while_the_service_hangs_one_put_at_a_time_waits_for_it_and_the_others_fail_at_once() -> None:
    hangs, asked = threading.Event(), []
    answers = threading.Event()

    def answer(method: str, path: str, create_only: bool) -> Answer:
        if hangs.is_set() and method == "PUT":
            asked.append(path)
            answers.wait(20)
        return well(method, path, create_only)

    with service(answer) as endpoint:
        store = open_store(endpoint)
        hangs.set()
        try:
            for number in range(100):
                with pytest.raises(Unavailable) as caught:
                    store.put(f"during-{number}", [b"x"])
                assert (caught.value.code, caught.value.retry_after_seconds) == ("dependency_down", 5)
            assert len(asked) <= 2, "of a hundred: the first, and one that looks whether it answers again"
        finally:
            hangs.clear()
            answers.set()
        wait_until(lambda: is_put(store, "after"))
        assert all(is_put(store, f"after-{number}") for number in range(20))


def is_put(store: S3ObjectStore, key: str) -> bool:
    try:
        return store.put(key, [b"x"]) == 1
    except Unavailable:
        return False


def test_an_answer_that_says_no_keeps_nobody_from_the_next_try() -> None:
    answers = [(503, "SlowDown"), (500, "InternalError"), (403, "AccessDenied")]

    def answer(method: str, path: str, create_only: bool) -> Answer:
        return answers.pop() if method == "PUT" and path.endswith("/a") and answers else well(method, path, create_only)

    with service(answer) as endpoint:
        store = open_store(endpoint)
        assert [is_put(store, "a") for _ in range(4)] == [False, False, False, True]
