"""Password hashes (argon2id), and which passwords and secrets are too weak to start with."""

from __future__ import annotations

import base64
import secrets
import threading
import unicodedata

from argon2 import Parameters, PasswordHasher
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError
from argon2.profiles import RFC_9106_LOW_MEMORY

from sensorkeep.errors import BadConfig, Corrupt, InvalidInput, Unavailable
from sensorkeep.limits import PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN, PASSWORD_WAIT_SECONDS, SECRET_CHARS_MIN

DISTINCT_CHARS_MIN = 4
"""Fewer different characters than this ("aaaaaaaaaaaaaaaa") are no secret, however long."""

_WELL_KNOWN_WORDS = """
    admin admin1 admin12 admin123 admin1234 admin12345 admin123456 admin@123 administrator adminadmin
    password password1 password12 password123 passw0rd p@ssw0rd p@ssword 12345678 123456789 1234567890 12345678910
    qwerty12 qwerty123 qwertyuiop letmein123 welcome1 welcome123 iloveyou changeme changeme1 changeme123
    change-me change_me changeit secret12 secret123 supersecret test1234 testtest guest123 root1234 toor1234
    sensorkeep sensorkeep1 sensorkeep123 sensorflow sensorflow123 easysmart easysmart123 telemetry
    telemetria minioadmin postgres homeassistant raspberry abcd1234 abc12345
    your-secret-key your_secret_key your-secret-key-here your_secret_key_here secret-key-change-me mysecretkey
    my-secret-key supersecretkey super-secret-key change-me-in-production changeme-in-production
    change_me_in_production change-this-in-production changethisinproduction changemechangeme
    your-api-key-here your_api_key_here
    sua_chave_http_secreta sua_chave_http_muito_secreta_e_longa_aqui sua_chave_websocket_muito_secreta_e_longa_aqui
    1234567890123456 0123456789abcdef 1234567890abcdef abcdefghijklmnop
"""
WELL_KNOWN = frozenset(_WELL_KNOWN_WORDS.split())
"""Passwords and keys that every attacker tries first, and those of the documents people copy from. Lower case."""


def refuse_weak_password(password: str, username: str, *, demo: bool) -> None:
    """Raises InvalidInput (`invalid_fields`) where `password` must not be used. In demo mode only the length counts."""
    fault = None
    if not password or len(password) > PASSWORD_CHARS_MAX:
        fault = f"The password must have 1 to {PASSWORD_CHARS_MAX} characters."
    elif not demo:
        fault = _fault(password, PASSWORD_CHARS_MIN, "password")
        if fault is None and password.casefold() == username.casefold():
            fault = "The password must differ from the username."
    if fault is not None:
        raise InvalidInput(fault, code="invalid_fields")


def refuse_weak_secret(setting: str, secret: str, *, demo: bool) -> None:
    """Raises BadConfig, naming `setting`, where `secret` must not be used. In demo mode it must only not be empty."""
    fault = "The value is empty; leave the setting out instead." if not secret else None
    if fault is None and not demo:
        fault = _fault(secret, SECRET_CHARS_MIN, "value")
    if fault is not None:
        raise BadConfig(f"{setting}: {fault}")


def _fault(text: str, chars_min: int, what: str) -> str | None:
    """Why `text` is too weak, without repeating it; None where it is not."""
    if text.casefold() in WELL_KNOWN:
        return f"The {what} is well known and would be guessed at once; choose another one."
    if len(text) < chars_min:
        return f"The {what} must have at least {chars_min} characters."
    if len(set(text)) < DISTINCT_CHARS_MIN:
        return f"The {what} must have at least {DISTINCT_CHARS_MIN} different characters."
    return None


class Passwords:
    """Makes and checks argon2id hashes in PHC form. Thread-safe.

    Hashing takes 64 MiB and all cores (RFC 9106 section 4, the profile for little memory), so one is done at a time;
    whoever waits longer than PASSWORD_WAIT_SECONDS gets Unavailable.
    """

    def __init__(self, parameters: Parameters = RFC_9106_LOW_MEMORY) -> None:
        self._hasher = PasswordHasher.from_parameters(parameters)
        self._turn = threading.Lock()
        self._nobody = _hash_of_nobody(parameters)

    def hash(self, password: str) -> str:
        """The hash to keep. Raises Unavailable."""
        with _Turn(self._turn):
            try:
                return self._hasher.hash(_normal(password))
            except HashingError as error:
                raise Unavailable("The password cannot be hashed now.") from error

    def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether `password` fits. None stands for an unknown user: the same work, always False.

        Raises Unavailable, and Corrupt where the hash is none.
        """
        with _Turn(self._turn):
            try:
                self._hasher.verify(password_hash or self._nobody, _normal(password))
            except VerifyMismatchError:
                return False
            except InvalidHashError as error:
                raise Corrupt("A stored password hash is damaged; set the user's password again.") from error
            except VerificationError as error:
                raise Unavailable("The password cannot be checked now.") from error
        return password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than those in use: hash again at the next login."""
        return self._hasher.check_needs_rehash(password_hash)


class _Turn:
    """Holds a lock, waiting for it at most PASSWORD_WAIT_SECONDS."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=PASSWORD_WAIT_SECONDS):
            raise Unavailable("Too many logins at once.", code="unavailable")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _normal(password: str) -> bytes:
    """The same bytes however the keyboard composes accents (RFC 8265 section 4.2: NFC)."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _hash_of_nobody(parameters: Parameters) -> str:
    """A well-formed hash with these parameters that no password has: its digest is random."""

    def encoded(length: int) -> str:
        return base64.b64encode(secrets.token_bytes(length)).rstrip(b"=").decode()

    costs = f"m={parameters.memory_cost},t={parameters.time_cost},p={parameters.parallelism}"
    return f"$argon2id$v={parameters.version}${costs}${encoded(parameters.salt_len)}${encoded(parameters.hash_len)}"
