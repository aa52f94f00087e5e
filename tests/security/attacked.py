"""What the tests of security know of the server that they attack."""

from __future__ import annotations

SECRET_KEY = "a signing secret that only tests know, 40+"
"""It signs tokens: the tests can forge what an attacker could only with it."""
