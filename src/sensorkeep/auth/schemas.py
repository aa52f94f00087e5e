"""The bodies and answers of the routes in `auth/http.py`, as the API documentation shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, SecretStr

from sensorkeep.auth.credentials import Credential
from sensorkeep.auth.sessions import TokenPair
from sensorkeep.catalog.base import ApiKey, User
from sensorkeep.clock import rfc3339
from sensorkeep.limits import NAME_CHARS_MAX, PASSWORD_CHARS_MAX, USERNAME_CHARS_MAX, WS_CONNECTIONS_SETTABLE_MAX

ScopeName = Literal["ingest", "read", "live", "admin"]

_TOKEN = "eyJhbGciOiJIUzI1NiIsInR5cCI6ImF0K2p3dCJ9.…"  # noqa: S105 - an example
_KEY_ID = "019abcde0f127c3ab4d5e6f708192a3b"
_USER: dict[str, JsonValue] = {"username": "maria", "scopes": ["live", "read"], "disabled": False}
_KEY: dict[str, JsonValue] = {
    "id": _KEY_ID,
    "name": "home-assistant",
    "scopes": ["ingest"],
    "created_at": "2026-01-15T10:00:00Z",
    "expires_at": "2027-01-15T10:00:00Z",
    "max_ws_connections": None,
    "last_used_at": "2026-01-15T11:30:00Z",
}


def _example(example: dict[str, JsonValue]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class Login(BaseModel):
    """A username and its password. Further fields, as OAuth2 forms have, are ignored."""

    model_config = _example({"username": "admin", "password": "correct horse battery staple"})

    username: str = Field(min_length=1, max_length=USERNAME_CHARS_MAX)
    password: SecretStr = Field(min_length=1, max_length=PASSWORD_CHARS_MAX)


class Refresh(BaseModel):
    """A refresh token."""

    model_config = _example({"refresh_token": _TOKEN})

    refresh_token: SecretStr = Field(min_length=1)


class Tokens(BaseModel):
    """An access token for requests and a refresh token for the next pair."""

    model_config = _example(
        {"access_token": _TOKEN, "refresh_token": _TOKEN, "token_type": "bearer", "expires_in": 900}
    )

    access_token: str
    refresh_token: str = Field(description="Good for one use.")
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - RFC 6750, not a password
    expires_in: int = Field(description="Seconds the access token is good for.")

    @classmethod
    def of(cls, pair: TokenPair) -> Tokens:
        """The answer that hands out `pair`."""
        return cls(access_token=pair.access_token, refresh_token=pair.refresh_token, expires_in=pair.expires_in)


class Me(BaseModel):
    """The credential of the request."""

    model_config = _example(
        {
            "id": "user:admin",
            "kind": "user",
            "username": "admin",
            "scopes": ["admin", "ingest", "live", "read"],
            "max_ws_connections": 10,
        }
    )

    id: str
    kind: Literal["user", "key", "static"]
    username: str = Field(description="The username; for a key its name.")
    scopes: list[str]
    max_ws_connections: int

    @classmethod
    def of(cls, credential: Credential) -> Me:
        """What `credential` is."""
        return cls(
            id=credential.id,
            kind=credential.kind,
            username=credential.name,
            scopes=sorted(credential.scopes),
            max_ws_connections=credential.max_ws_connections,
        )


class Ticket(BaseModel):
    """A one-time ticket for opening a WebSocket."""

    model_config = _example({"ticket": "Vb3pGm0q…", "expires_in": 30})

    ticket: str
    expires_in: int = Field(description="Seconds.")


class NewKey(BaseModel):
    """An API key to be made. A field that is not known is refused: a misspelt expiry must not make a key for ever."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "home-assistant", "scopes": ["ingest"], "expires_at": "2027-01-15T10:00:00Z"}]
        },
    )

    name: str = Field(min_length=1, max_length=NAME_CHARS_MAX)
    scopes: list[ScopeName] = Field(min_length=1)
    expires_at: AwareDatetime | None = Field(default=None, description="Without it the key lives until it is revoked.")
    max_ws_connections: int | None = Field(default=None, ge=1, le=WS_CONNECTIONS_SETTABLE_MAX)


class Key(BaseModel):
    """An API key, without its secret."""

    model_config = _example(_KEY)

    id: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    max_ws_connections: int | None
    last_used_at: str | None = Field(description="To the minute.")

    @classmethod
    def of(cls, key: ApiKey) -> Key:
        """How `key` is shown."""
        return cls(**_shown(key))


class IssuedKey(Key):
    """A new API key, with its secret: it is shown this once and cannot be shown again."""

    model_config = _example(_KEY | {"secret": f"sk_{_KEY_ID}_…", "last_used_at": None})

    secret: str = Field(description="What to send as X-API-Key.")

    @classmethod
    def with_secret(cls, key: ApiKey, secret: str) -> IssuedKey:
        """How a new key is shown, once."""
        return cls(**_shown(key), secret=secret)


class Keys(BaseModel):
    """All keys, newest first."""

    keys: list[Key]


class NewUser(BaseModel):
    """A user to be made. A user with the scope `admin` is given every scope."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"username": "maria", "password": "correct horse battery staple", "scopes": ["read", "live"]}]
        },
    )

    username: str = Field(min_length=1, max_length=USERNAME_CHARS_MAX)
    password: SecretStr = Field(min_length=1, max_length=PASSWORD_CHARS_MAX)
    scopes: list[ScopeName] = Field(min_length=1)


class UserChange(BaseModel):
    """What to change of a user; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"scopes": ["read"], "disabled": False}]})

    password: SecretStr | None = Field(default=None, min_length=1, max_length=PASSWORD_CHARS_MAX)
    scopes: list[ScopeName] | None = Field(default=None, min_length=1)
    disabled: bool | None = None


class UserShown(BaseModel):
    """A user."""

    model_config = _example(_USER)

    username: str
    scopes: list[str]
    disabled: bool

    @classmethod
    def of(cls, user: User) -> UserShown:
        """How `user` is shown."""
        return cls(username=user.username, scopes=sorted(user.scopes), disabled=user.disabled)


class Users(BaseModel):
    """All users, by name."""

    users: list[UserShown]


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": rfc3339(key.created_us),
        "expires_at": None if key.expires_us is None else rfc3339(key.expires_us),
        "max_ws_connections": key.max_ws_connections,
        "last_used_at": None if key.last_used_us is None else rfc3339(key.last_used_us),
    }
