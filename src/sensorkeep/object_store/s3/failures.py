"""What the S3 client's errors mean. It tells what happened in its texts alone."""

from __future__ import annotations

import re

from obstore.exceptions import BaseError

from sensorkeep.errors import Unavailable

FAILURES = (BaseError, OSError, NotImplementedError)
"""What the client raises: its own errors, and Python's for what is not there, not written or not supported."""

_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_WRONG_REGION = "redirect without LOCATION"
_SENT_NOWHERE = "kind: Connect"
_NOT_ANSWERED = "kind: Timeout"
_NO_ROOM = ("507", "InsufficientStorage", "XMinioStorageFull")
"""S3 has no code for a full disk; these are WebDAV's status, which services use, and MinIO's code."""


def code_of(error: BaseException) -> str:
    """What the service answered: the error code of S3 (`NoSuchBucket`), the HTTP status where it sent none, or ""
    where it did not answer."""
    text = str(error)
    if _WRONG_REGION in text:
        return "PermanentRedirect"
    found = _CODE.search(text) or _STATUS.search(text)
    return found[1] if found else ""


def is_lost(error: BaseException) -> bool:
    """Whether the service was not reached or did not answer in time: other requests would fare alike."""
    text = str(error)
    return not code_of(error) and (_SENT_NOWHERE in text or _NOT_ANSWERED in text)


def unavailable(error: BaseException, place: str) -> Unavailable:
    """The error to raise, without the service's own words: they may hold parts of the credentials."""
    code, text = code_of(error), str(error)
    if code in _NO_ROOM:
        return Unavailable(f"no room is left for objects in {place}", code="disk_full")
    if code:
        reason = f"answered {code}"
    elif _SENT_NOWHERE in text:
        reason = "cannot be reached"
    elif _NOT_ANSWERED in text:
        reason = "did not answer in time"
    else:
        reason = "broke the request off"
    return Unavailable(f"{place} {reason}", code="dependency_down")
