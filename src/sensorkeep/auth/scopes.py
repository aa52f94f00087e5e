"""What a credential may do.

A route asks for exactly one scope, and no scope implies another: a key with `admin` alone manages users and keys and
reads no telemetry. People expect an administrator to see everything, so a *user* who is given `admin` is given all
scopes (`user_scopes`); a key has what its list says.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from sensorkeep.errors import InvalidInput


class Scope(enum.StrEnum):
    """The scopes of SPEC section 3."""

    INGEST = "ingest"
    """Send readings."""
    READ = "read"
    """Query readings, the catalog and batches."""
    LIVE = "live"
    """Open live streams."""
    ADMIN = "admin"
    """Manage users and keys, replay, backfill."""


ALL_SCOPES: frozenset[str] = frozenset(Scope)


def known_scopes(names: Iterable[str]) -> frozenset[str]:
    """`names` as plain strings, each a known scope and at least one. Raises InvalidInput (`invalid_fields`)."""
    asked = frozenset(str(name) for name in names)
    if not asked or not asked <= ALL_SCOPES:
        listed = ", ".join(sorted(ALL_SCOPES))
        raise InvalidInput(f"Scopes are one or more of: {listed}.", code="invalid_fields")
    return asked


def user_scopes(names: Iterable[str]) -> frozenset[str]:
    """The scopes of a user: those named, or all where `admin` is among them. Raises InvalidInput."""
    asked = known_scopes(names)
    return frozenset(str(scope) for scope in ALL_SCOPES) if Scope.ADMIN in asked else asked
