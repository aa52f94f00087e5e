"""Logging in, staying logged in, keys and users, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from harness import PASSWORD, Server, new_uuid, problem, running, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

ALL_SCOPES = ["admin", "ingest", "live", "read"]
USER_PASSWORD = "another good passphrase 7"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this file: failed logins are limited by address, and must not lock other tests out."""
    with running(tmp_path_factory.mktemp("auth") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def admin(guarded: Server) -> Iterator[httpx.Client]:
    with guarded.login() as client:
        yield client


def login(server: Server, username: str = "admin", password: str = PASSWORD) -> dict[str, Any]:
    answer = server.anonymous.post("/auth/login", json={"username": username, "password": password})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def me(server: Server, token: str) -> httpx.Response:
    return server.anonymous.get("/auth/me", headers={"Authorization": f"Bearer {token}"})


def with_key(server: Server, secret: str, path: str = "/auth/me") -> httpx.Response:
    return server.anonymous.get(path, headers={"X-API-Key": secret})


def new_key(admin: httpx.Client, **fields: object) -> dict[str, Any]:
    answer = admin.post("/keys", json={"name": f"key-{new_uuid()}", "scopes": ["read"]} | fields)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def new_user(admin: httpx.Client, *scopes: str) -> str:
    username = f"user-{new_uuid()[:8]}"
    body = {"username": username, "password": USER_PASSWORD, "scopes": list(scopes)}
    answer = admin.post("/users", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"username": username, "scopes": sorted(scopes), "disabled": False}
    return username


@pytest.mark.parametrize("path", ["/auth/login", "/auth/device/login"])
@pytest.mark.parametrize("form", [False, True])
def test_login_takes_json_and_the_oauth2_form(guarded: Server, path: str, form: bool) -> None:
    fields = {"username": "admin", "password": PASSWORD}
    if form:
        answer = guarded.anonymous.post(path, data=fields | {"grant_type": "password", "scope": ""})
    else:
        answer = guarded.anonymous.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (document["token_type"], document["expires_in"]) == ("bearer", 900)
    assert answer.headers["cache-control"] == "no-store"
    assert me(guarded, document["access_token"]).json()["username"] == "admin"


def test_a_wrong_password_and_an_unknown_user_are_the_same_401(guarded: Server) -> None:
    details = []
    for username in ("admin", "nobody"):
        body = {"username": username, "password": PASSWORD + "x"}
        answer = guarded.anonymous.post("/auth/login", json=body)
        details.append(problem(answer, 401, "unauthenticated")["detail"])
        assert PASSWORD not in answer.text
    assert details[0] == details[1]


def test_a_login_without_its_fields_is_a_422_and_without_json_a_400(guarded: Server) -> None:
    problem(guarded.anonymous.post("/auth/login", json={"username": "admin"}), 422, "invalid_fields")
    answer = guarded.anonymous.post("/auth/login", content=b"{", headers={"Content-Type": "application/json"})
    problem(answer, 400, "not_json")
    problem(guarded.anonymous.post("/auth/login", content=b"x", headers={"Content-Type": "text/plain"}), 415,
            "unsupported_media_type")  # fmt: skip


@pytest.mark.parametrize("by", ["header", "body"])
def test_a_refresh_token_gives_a_new_pair_once(guarded: Server, by: str) -> None:
    first = login(guarded)

    def refresh(token: str) -> httpx.Response:
        if by == "header":
            return guarded.anonymous.post("/auth/refresh", headers={"Authorization": f"Bearer {token}"})
        return guarded.anonymous.post("/auth/refresh", json={"refresh_token": token})

    answer = refresh(first["refresh_token"])
    assert answer.status_code == 200, answer.text
    second = answer.json()
    assert second.keys() == first.keys()
    assert second["refresh_token"] != first["refresh_token"]
    assert me(guarded, second["access_token"]).status_code == 200

    problem(refresh(first["refresh_token"]), 401, "unauthenticated")
    problem(refresh(second["refresh_token"]), 401, "unauthenticated")
    assert me(guarded, login(guarded)["access_token"]).status_code == 200, "another login is another family"


def test_tokens_are_good_for_their_own_purpose_only(guarded: Server) -> None:
    tokens = login(guarded)
    problem(me(guarded, tokens["refresh_token"]), 401, "unauthenticated")
    answer = guarded.anonymous.post("/auth/refresh", json={"refresh_token": tokens["access_token"]})
    problem(answer, 401, "unauthenticated")
    head, payload, signature = tokens["access_token"].split(".")
    problem(me(guarded, f"{head}.{payload}.{signature[::-1]}"), 401, "unauthenticated")
    problem(me(guarded, f"eyJhbGciOiJub25lIn0.{payload}."), 401, "unauthenticated")


def test_me_tells_who_asks(guarded: Server, admin: httpx.Client) -> None:
    user = admin.get("/auth/me").json()
    assert (user["username"], user["kind"], user["scopes"]) == ("admin", "user", ALL_SCOPES)
    static = guarded.client.get("/auth/me").json()
    assert (static["kind"], static["scopes"]) == ("static", ["ingest", "read"])
    key = with_key(guarded, new_key(admin, name="mine", scopes=["live"])["secret"]).json()
    assert (key["username"], key["kind"], key["scopes"]) == ("mine", "key", ["live"])


def test_a_keys_secret_is_shown_once(guarded: Server, admin: httpx.Client) -> None:
    key = new_key(admin, name="once", scopes=["read"])
    listed = admin.get("/keys")
    assert key["secret"] not in listed.text
    (shown,) = [item for item in listed.json()["keys"] if item["id"] == key["id"]]
    assert shown.keys() == key.keys() - {"secret"}
    assert (shown["name"], shown["scopes"], shown["expires_at"]) == ("once", ["read"], None)
    assert with_key(guarded, key["secret"], "/equipment").status_code == 200


def test_a_revoked_key_is_refused_at_once(guarded: Server, admin: httpx.Client) -> None:
    key = new_key(admin)
    assert with_key(guarded, key["secret"]).status_code == 200, "so that it is remembered"
    assert admin.delete(f"/keys/{key['id']}").status_code == 204
    problem(with_key(guarded, key["secret"]), 401, "unauthenticated")
    assert key["id"] not in {item["id"] for item in admin.get("/keys").json()["keys"]}
    problem(admin.delete(f"/keys/{key['id']}"), 404, "not_found")


def test_a_key_ends_at_its_expiry_though_it_is_remembered(guarded: Server, admin: httpx.Client) -> None:
    expires = datetime.now(UTC) + timedelta(seconds=1.5)
    key = new_key(admin, expires_at=expires.isoformat())
    assert with_key(guarded, key["secret"]).status_code == 200
    wait_until(lambda: with_key(guarded, key["secret"]).status_code == 401, seconds=10)
    assert datetime.now(UTC) >= expires


@pytest.mark.parametrize(
    "fields",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"name": ""},
        {"expires_at": "soon"},
        {"expire_at": "2030-01-01T00:00:00Z"},
        {"max_ws_connections": 0},
    ],
)
def test_a_key_with_bad_fields_is_a_422(admin: httpx.Client, fields: dict[str, object]) -> None:
    problem(admin.post("/keys", json={"name": "bad", "scopes": ["read"]} | fields), 422, "invalid_fields")


def test_users_are_made_changed_disabled_and_removed(guarded: Server, admin: httpx.Client) -> None:
    username = new_user(admin, "read")
    assert username in {user["username"] for user in admin.get("/users").json()["users"]}
    token = login(guarded, username, USER_PASSWORD)["access_token"]
    assert me(guarded, token).json()["scopes"] == ["read"]
    body = {"username": username, "password": USER_PASSWORD, "scopes": ["read"]}
    problem(admin.post("/users", json=body), 409, "already_exists")

    assert admin.patch(f"/users/{username}", json={"password": USER_PASSWORD + " new"}).status_code == 200
    problem(me(guarded, token), 401, "unauthenticated")
    token = login(guarded, username, USER_PASSWORD + " new")["access_token"]
    assert admin.patch(f"/users/{username}", json={"disabled": True}).json()["disabled"] is True
    problem(me(guarded, token), 401, "unauthenticated")

    assert admin.delete(f"/users/{username}").status_code == 204
    problem(admin.delete(f"/users/{username}"), 404, "not_found")
    assert username not in admin.get("/users").text


def test_well_known_and_short_passwords_are_refused(admin: httpx.Client) -> None:
    for password in ("admin123", "short"):
        answer = admin.post("/users", json={"username": "weak", "password": password, "scopes": ["read"]})
        assert answer.status_code in (400, 422), answer.text
        assert password not in answer.json()["detail"]
    assert "weak" not in {user["username"] for user in admin.get("/users").json()["users"]}


def test_an_admin_is_given_every_scope(guarded: Server, admin: httpx.Client) -> None:
    username = f"boss-{new_uuid()[:8]}"
    body = {"username": username, "password": USER_PASSWORD, "scopes": ["admin"]}
    assert admin.post("/users", json=body).json()["scopes"] == ALL_SCOPES
    assert me(guarded, login(guarded, username, USER_PASSWORD)["access_token"]).json()["scopes"] == ALL_SCOPES


def stream_url(server: Server, **query: str) -> str:
    return str(httpx.URL(f"ws{server.url[4:]}/ws/sensor_updates", params=query))


def refusal(url: str) -> tuple[int, str]:
    """Close code and reason of a WebSocket that is refused."""
    with connect(url) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_a_ticket_opens_one_websocket(guarded: Server, admin: httpx.Client) -> None:
    answer = admin.post("/auth/ws-ticket")
    assert answer.status_code == 201, answer.text
    ticket = answer.json()["ticket"]
    assert answer.json()["expires_in"] == 30
    name = f"ticket-{new_uuid()}"
    with connect(stream_url(guarded, ticket=ticket, sensor_id=name)) as socket:
        sent = guarded.client.post("/temperature_reading", json={"temperature": 2.5, "sensor_id": name})
        assert sent.status_code == 201, sent.text
        assert '"temperature":2.5' in str(socket.recv(timeout=10)).replace(" ", "")
        code, reason = refusal(stream_url(guarded, ticket=ticket))
        assert code == 1008
        assert reason


def test_a_websocket_without_a_live_credential_is_closed_with_1008(guarded: Server, admin: httpx.Client) -> None:
    assert refusal(stream_url(guarded))[0] == 1008
    secret = new_key(admin, scopes=["read", "ingest"])["secret"]
    assert refusal(stream_url(guarded, **{"api-key": secret}))[0] == 1008


def test_a_key_may_hold_as_many_websockets_as_it_was_given(guarded: Server, admin: httpx.Client) -> None:
    url = stream_url(guarded, **{"api-key": new_key(admin, scopes=["live"], max_ws_connections=2)["secret"]})
    with connect(url), connect(url):
        code, reason = refusal(url)
        assert code == 1008
        assert "2" in reason
