"""Rate limit counters that gateways share through Valkey.

Two ways, by what is counted. Failed logins and refused credentials are counted in Valkey itself, at every hit, so that
guesses sent to all gateways at once do not slip through together; that blocks, and is done on threads. Requests are
counted here and told every RATE_SHARED_SECONDS, because they are admitted on the event loop, where a round trip for
each would cost more than the rest of the request (docs/decisions/0010-what-valkey-holds.md). So over all gateways a
quota is exceeded at most by what they admit within that time, and on each gateway never.

Without Valkey each gateway counts by itself, on from what it knew.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from importlib import resources

import structlog

from sensorkeep.auth.counters import WINDOW_SECONDS, CounterStorage
from sensorkeep.clock import MICROSECONDS, Clock
from sensorkeep.errors import Unavailable
from sensorkeep.limits import RATE_SHARED_AT_ONCE, RATE_SHARED_SECONDS
from sensorkeep.valkey import Client, Valkey

log = structlog.get_logger(__name__)

_SCRIPT = resources.files("sensorkeep.auth").joinpath("counters.lua").read_text("ascii")


class SharedCounters(CounterStorage):
    """The counters of one gateway, in step with those of the others."""

    STORAGE_SCHEME = ["sensorkeep-valkey"]  # noqa: RUF012 - the library's own form

    def __init__(self, clock: Clock, valkey: Valkey, told_later: Callable[[str], bool]) -> None:
        """`told_later(key)`: whether a counter is told now and then, not at every hit."""
        super().__init__(clock)
        self._valkey = valkey
        self._told_later = told_later
        self._untold: dict[str, int] = {}
        """What was counted here since the others were told, by key."""
        self._something = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        if self._told_later(key):
            return self._count_here(key, expiry, amount)
        try:
            (count, ends) = self._add([key], [amount])[0]
        except Unavailable:
            return super().incr(key, expiry, amount)
        self._put(key, count, ends)
        return count

    def close(self) -> None:
        """Tell what was counted, and stop. Idempotent."""
        self._closing.set()
        self._something.set()
        if self._thread is not None:
            self._thread.join()

    def share(self) -> None:
        """Tell the others what was counted here, and learn what they counted. Raises Unavailable; what was not told
        is told next time."""
        with self._lock:
            untold, self._untold = self._untold, {}
        keys = list(untold)
        for start in range(0, len(keys), RATE_SHARED_AT_ONCE):
            portion = keys[start : start + RATE_SHARED_AT_ONCE]
            try:
                known = self._add(portion, [untold[key] for key in portion])
            except Unavailable:
                self._keep_untold({key: untold[key] for key in keys[start:]})
                raise
            with self._lock:
                for key, (count, ends) in zip(portion, known, strict=True):
                    self._counters.pop(key, None)  # the dictionary is in the order in which windows end, nearly
                    self._counters[key] = (count + self._untold.get(key, 0), ends)

    def _count_here(self, key: str, expiry: int, amount: int) -> int:
        count = super().incr(key, expiry, amount)
        with self._lock:
            self._untold[key] = self._untold.get(key, 0) + amount
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rate-limits", daemon=True)
                self._thread.start()
        self._something.set()
        return count

    def _add(self, keys: Sequence[str], amounts: Sequence[int]) -> list[tuple[int, float]]:
        """Add to counters in Valkey; the count and the end of the window (seconds since the epoch) of each."""
        names = [self._valkey.name("rate", _digest(key)) for key in keys]

        def add(client: Client) -> list[int]:
            answer: list[int] = client.eval(_SCRIPT, len(names), *names, 1000 * WINDOW_SECONDS, *amounts)
            return answer

        answer = self._valkey.run(add)
        now = self._clock.now_us() / MICROSECONDS
        return [(count, now + left / 1000) for count, left in zip(answer[::2], answer[1::2], strict=True)]

    def _put(self, key: str, count: int, ends: float) -> None:
        with self._lock:
            self._counters.pop(key, None)
            self._make_room(self._clock.now_us() / MICROSECONDS)
            self._counters[key] = (count, ends)

    def _keep_untold(self, untold: dict[str, int]) -> None:
        """Those whose window is not over."""
        now = self._clock.now_us() / MICROSECONDS
        with self._lock:
            for key, amount in untold.items():
                if now < self._counters.get(key, (0, 0.0))[1]:
                    self._untold[key] = self._untold.get(key, 0) + amount

    def _run(self) -> None:
        while not self._closing.is_set():
            self._something.wait()
            self._closing.wait(RATE_SHARED_SECONDS)
            self._something.clear()
            try:
                self.share()
            except Unavailable:
                self._something.set()
            except Exception:
                log.exception("rate_limits_not_shared")


def _digest(key: str) -> str:
    """What stands for a counter in Valkey: keys hold usernames, which may be any text, and addresses."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
