"""Work on the catalog's database that nobody waits for longer than an answer to a client may take."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sensorkeep.errors import Unavailable
from sensorkeep.limits import CATALOG_AFTERTHOUGHT_SECONDS_MAX

Result = TypeVar("Result")


class Bounded:
    """Does what comes after a request is durable on one thread of its own, in the order it was asked for. Thread-safe.

    A server that hangs is found out only after many seconds; a durable answer must not wait for that.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._late: Future[Any] | None = None

    def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns. Raises what it raises, and Unavailable where it takes longer than
        CATALOG_AFTERTHOUGHT_SECONDS_MAX: it goes on then, and until it has ended all others are refused at once."""
        late = self._late
        if late is not None and not late.done():
            raise Unavailable("the catalog has not answered for a while", code="dependency_down")
        running = self._thread.submit(work)
        try:
            return running.result(CATALOG_AFTERTHOUGHT_SECONDS_MAX)
        except TimeoutError:
            self._late = running
            raise Unavailable("the catalog does not answer in time", code="dependency_down") from None
