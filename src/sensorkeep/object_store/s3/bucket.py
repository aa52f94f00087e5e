"""Finds the bucket at the start, or makes it; and says which setting is wrong where neither can be done."""

from __future__ import annotations

import re
from datetime import timedelta
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import obstore
from obstore.store import S3Store

from sensorkeep.errors import BadConfig, SensorkeepError, Unavailable
from sensorkeep.limits import S3_REQUEST_SECONDS_MAX
from sensorkeep.object_store.s3.failures import FAILURES, code_of, unavailable

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENDPOINT = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
_ACCESS_KEY = re.compile(r"[\x21-\x7e]{1,512}")

_DEFAULT_REGION = "us-east-1"
"""The one region whose name CreateBucket does not take: there the bucket is made without naming it."""
_LOCATION = (
    '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>"
)

_REASONS = {
    "InvalidAccessKeyId": "SENSORKEEP_S3_ACCESS_KEY is not known there",
    "SignatureDoesNotMatch": "SENSORKEEP_S3_SECRET_KEY does not belong to SENSORKEEP_S3_ACCESS_KEY",
    "AccessDenied": "the credentials (SENSORKEEP_S3_ACCESS_KEY) may not use it; they must list, read, write and delete",
    "403": "the credentials (SENSORKEEP_S3_ACCESS_KEY) may not use it; they must list, read, write and delete",
    "ExpiredToken": "the credentials have expired",
    "InvalidToken": "the session token of the credentials is not valid",
    "RequestTimeTooSkewed": "the clock of this machine differs too much from the service's",
    "AuthorizationHeaderMalformed": "SENSORKEEP_S3_REGION is not the region of the bucket",
    "PermanentRedirect": "SENSORKEEP_S3_REGION is not the region of the bucket",
    "BucketAlreadyExists": "the bucket belongs to somebody else; name another in SENSORKEEP_OBJECT_STORE_URL",
}
"""What somebody has to change, by S3's error code
(https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""


def check_settings(
    bucket: str, *, endpoint: str | None, access_key: str | None, secret_key: str | None, region: str
) -> None:
    """Raises BadConfig for what the client would choke on or send to the wrong place."""
    if not _BUCKET.fullmatch(bucket):
        raise BadConfig(
            f"SENSORKEEP_OBJECT_STORE_URL: {bucket[:100]!r} is not the name of a bucket: 3 to 63 lower-case letters,"
            " digits, '.' and '-', with nothing behind it"
        )
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise BadConfig("SENSORKEEP_S3_ENDPOINT is not an address such as http://seaweedfs:8333, without user or query")
    if not _REGION.fullmatch(region):
        raise BadConfig("SENSORKEEP_S3_REGION is not the name of a region such as us-east-1")
    if (access_key is None) != (secret_key is None):
        raise BadConfig("SENSORKEEP_S3_ACCESS_KEY and SENSORKEEP_S3_SECRET_KEY go together: one of them is not set")
    if access_key is not None and not _ACCESS_KEY.fullmatch(access_key):
        raise BadConfig(
            "SENSORKEEP_S3_ACCESS_KEY holds a character that no access key has, perhaps a space or new line"
        )


def find_or_make_bucket(client: S3Store, place: str, region: str, *, has_keys: bool) -> None:
    """Raises BadConfig where a setting is wrong, Unavailable where the service is not there."""
    try:
        next(obstore.list(client, chunk_size=1), None)
    except FAILURES as error:
        if code_of(error) != "NoSuchBucket":
            raise start_error(error, place, has_keys=has_keys) from None
        _make_bucket(client, place, region)


def start_error(error: BaseException, place: str, *, has_keys: bool) -> SensorkeepError:
    """What to tell whoever starts the process."""
    code = code_of(error)
    if code in _REASONS:
        return BadConfig(f"{place}: {_REASONS[code]} (it answered {code})")
    if not has_keys and "/latest/" in str(error):  # where the machines of AWS are told their credentials
        return BadConfig(
            f"{place}: there are no credentials; set SENSORKEEP_S3_ACCESS_KEY and SENSORKEEP_S3_SECRET_KEY"
        )
    if code.startswith("4"):
        return BadConfig(f"{place} answered {code}: is SENSORKEEP_S3_ENDPOINT the address of an S3 service?")
    found = unavailable(error, place)
    return Unavailable(f"{found.detail} (SENSORKEEP_S3_ENDPOINT)", code=found.code)


def _make_bucket(client: S3Store, place: str, region: str) -> None:
    """CreateBucket, which the client has no call for: it only signs the address.

    Another process may make the same bucket at the same time; then it is there as well.
    """
    url = obstore.sign(client, "PUT", "", timedelta(seconds=60))
    body = b"" if region == _DEFAULT_REGION else _LOCATION.format(region).encode()
    request = Request(url, body, {"Content-Type": "application/xml"}, method="PUT")  # noqa: S310 - see _ENDPOINT
    try:
        with urlopen(request, timeout=S3_REQUEST_SECONDS_MAX):  # noqa: S310
            return
    except HTTPError as error:
        with error:
            answer = f"status code: {error.code} {error.read(4096).decode('utf-8', 'replace')}"
        code = code_of(Exception(answer))
    except OSError as error:
        raise Unavailable(f"{place} broke the request off: {error}", code="dependency_down") from None
    if code in ("BucketAlreadyOwnedByYou", "OperationAborted"):
        return
    if code in ("AccessDenied", "403"):
        raise BadConfig(
            f"{place} does not exist, and the credentials (SENSORKEEP_S3_ACCESS_KEY) may not make it: make it by hand,"
            " or name another in SENSORKEEP_OBJECT_STORE_URL"
        )
    reason = _REASONS.get(code, "it could not be made")
    raise BadConfig(f"{place} does not exist: {reason} (the service answered {code})")
