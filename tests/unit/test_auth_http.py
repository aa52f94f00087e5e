"""The routes of auth, through HTTP on a real catalog."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from argon2 import PasswordHasher
from auth_world import API_KEY, API_KEY_WS, OPERATOR, PASSWORD, World, make_app, make_world
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient, Response

from sensorkeep.auth.sessions import Sessions, TokenPair
from sensorkeep.auth.setup import AuthSettings
from sensorkeep.catalog.base import User
from sensorkeep.limits import LOGIN_FAILURES_PER_MINUTE_PER_IP, LOGIN_FAILURES_PER_MINUTE_PER_USERNAME

LOGIN = "/api/v1/auth/login"
REFRESH = "/api/v1/auth/refresh"
GOOD = {"username": "admin", "password": PASSWORD}
BAD = {"username": "admin", "password": "wrong horse battery"}


@pytest.fixture
def world() -> Iterator[World]:
    made = make_world()
    yield made
    made.database.close()


@pytest.fixture
def client(world: World) -> TestClient:
    return world.client()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def admin(client: TestClient) -> dict[str, str]:
    return bearer(client.post(LOGIN, json=GOOD).json()["access_token"])


def assert_problem(answer: Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


# --- logging in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LOGIN, "/api/v1/auth/device/login"])
@pytest.mark.parametrize("form", [False, True])
def test_a_login_takes_json_or_a_form_and_gives_tokens_that_work(client: TestClient, path: str, form: bool) -> None:
    answer = client.post(path, data={"grant_type": "password", **GOOD}) if form else client.post(path, json=GOOD)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (body["token_type"], body["expires_in"]) == ("bearer", 900)
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/only/read", headers=bearer(body["access_token"])).status_code == 200
    assert client.get("/only/read", headers=bearer(body["refresh_token"])).status_code == 401


def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(client: TestClient) -> None:
    wrong, unknown = client.post(LOGIN, json=BAD), client.post(LOGIN, json=BAD | {"username": "nobody"})
    assert_problem(wrong, 401, "unauthenticated")
    assert wrong.json() == unknown.json()


def test_a_disabled_user_cannot_log_in(world: World, client: TestClient) -> None:
    world.auth.administration.add_user("maria", PASSWORD, ["read"], OPERATOR)
    world.auth.administration.change_user("maria", OPERATOR, disabled=True)
    assert_problem(client.post(LOGIN, json=GOOD | {"username": "maria"}), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"", "application/json", 400, "not_json"),
        (b'{"username":', "application/json", 400, "not_json"),
        (b"\xff\xfe", "application/json", 400, "not_json"),
        (b"[]", "application/json", 422, "invalid_fields"),
        (b'{"username":"admin"}', "application/json", 422, "invalid_fields"),
        (b'{"username":"admin","password":7}', "application/json", 422, "invalid_fields"),
        (b'{"username":"admin","password":""}', "application/json", 422, "invalid_fields"),
        (b"username=admin", "application/x-www-form-urlencoded", 422, "invalid_fields"),
        (b"a=1&" * 50, "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"username=\xff", "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"username=%ff&password=x", "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"<xml/>", "text/xml", 422, "unsupported_media_type"),
        (b" " * 70_000, "application/json", 413, "too_large"),
        (b'{"username":"admin","password":"\\ud800"}', "application/json", 400, "not_json"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_body_that_is_no_login_gets_a_clear_refusal(
    client: TestClient, content: bytes, media_type: str, status: int, code: str
) -> None:
    status = 415 if code == "unsupported_media_type" else status
    assert_problem(client.post(LOGIN, content=content, headers={"Content-Type": media_type}), status, code)


def test_what_was_sent_is_not_repeated_in_the_refusal(client: TestClient) -> None:
    secret = "hunter2-" * 60
    for path, body in ((LOGIN, {"username": "admin", "password": secret}), (REFRESH, {"refresh_token": [secret]})):
        answer = client.post(path, json=body)
        assert answer.status_code == 422
        assert "hunter2" not in answer.text
        assert answer.json()["errors"][0]["field"] in body


def test_the_hash_follows_the_parameters_at_the_next_login(world: World, client: TestClient) -> None:
    user = world.accounts.user("admin")
    assert user is not None
    outdated = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1).hash(PASSWORD)
    world.accounts.put_user(dataclasses.replace(user, password_hash=outdated))
    answer = client.post(LOGIN, json=GOOD)
    renewed = world.accounts.user("admin")
    assert renewed is not None
    assert renewed.password_hash.split("$")[3] == user.password_hash.split("$")[3] != outdated.split("$")[3]
    assert client.get("/only/admin", headers=bearer(answer.json()["access_token"])).status_code == 200
    client.post(LOGIN, json=GOOD)
    assert world.accounts.user("admin") == renewed


def test_a_storm_of_logins_leaves_threads_for_other_requests(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    release, login = threading.Event(), Sessions.login

    def slow(self: Sessions, username: str, password: str, client_ip: str) -> TokenPair:
        assert release.wait(30)
        return login(self, username, password, client_ip)

    monkeypatch.setattr(Sessions, "login", slow)

    async def storm() -> list[int]:
        transport = ASGITransport(make_app(world.auth))
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            logins = [asyncio.create_task(client.post(LOGIN, json=GOOD)) for _ in range(60)]
            try:
                # The key is not remembered, so this needs a thread.
                other = client.get("/only/read", headers={"X-API-Key": API_KEY})
                assert (await asyncio.wait_for(other, 10)).status_code == 200
            finally:
                release.set()
            return [answer.status_code for answer in await asyncio.gather(*logins)]

    assert asyncio.run(storm()) == [200] * 60


# --- the login limits ---------------------------------------------------------------------------------------------


def test_failures_for_a_username_are_limited_whatever_address_they_come_from(world: World) -> None:
    for number in range(LOGIN_FAILURES_PER_MINUTE_PER_USERNAME):
        assert_problem(world.client(f"192.0.2.{number + 10}").post(LOGIN, json=BAD), 401, "unauthenticated")
    other = world.client("192.0.2.99")
    for body in (BAD, GOOD):
        answer = other.post(LOGIN, json=body)
        assert_problem(answer, 429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["ratelimit-policy"] == '"login-username";q=5;w=60'
        assert answer.headers["ratelimit"].startswith('"login-username";r=0;t=')
    world.clock.advance(60)
    assert other.post(LOGIN, json=GOOD).status_code == 200


def test_failures_of_a_client_are_limited_whatever_the_usernames(world: World) -> None:
    client = world.client("192.0.2.1")
    for number in range(LOGIN_FAILURES_PER_MINUTE_PER_IP):
        client.post(LOGIN, json=BAD | {"username": f"user{number}"})
    assert_problem(client.post(LOGIN, json=GOOD), 429, "rate_limited")
    assert world.client("192.0.2.2").post(LOGIN, json=GOOD).status_code == 200


def test_logins_that_succeed_lock_nobody_out(client: TestClient) -> None:
    statuses = {client.post(LOGIN, json=GOOD).status_code for _ in range(3 * LOGIN_FAILURES_PER_MINUTE_PER_IP)}
    assert statuses == {200}


def test_refused_refresh_tokens_count_as_failed_logins(world: World) -> None:
    client = world.client()
    for _ in range(LOGIN_FAILURES_PER_MINUTE_PER_IP):
        assert_problem(client.post(REFRESH, json={"refresh_token": "x"}), 401, "unauthenticated")
    assert_problem(client.post(REFRESH, json={"refresh_token": "x"}), 429, "rate_limited")


def test_going_over_a_login_limit_is_audited_once_a_minute_and_names_only_users_that_exist(world: World) -> None:
    client = world.client()
    for _ in range(8):
        client.post(LOGIN, json=BAD)
    mistyped = "my password in the wrong field"
    for _ in range(20):
        client.post(LOGIN, json=BAD | {"username": mistyped})
    assert world.audited()[1:] == [
        ("anonymous", "login.refused.login-username", "admin"),
        ("anonymous", "login.refused.login-ip", "(unknown)"),
    ]
    assert world.registry.audit_log(1)[0].client_ip == "192.0.2.1"


# --- refreshing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["header", "json", "form", "both"])
def test_a_refresh_takes_the_token_from_the_body_or_the_header(client: TestClient, where: str) -> None:
    tokens = client.post(LOGIN, json=GOOD).json()
    body = {"refresh_token": tokens["refresh_token"]}
    arguments: dict[str, Any] = {
        "header": {"headers": bearer(tokens["refresh_token"])},
        "json": {"json": body},
        "form": {"data": {"grant_type": "refresh_token", **body}},
        "both": {"json": body, "headers": bearer(tokens["access_token"])},
    }[where]
    answer = client.post(REFRESH, **arguments)
    assert answer.status_code == 200
    assert answer.json()["refresh_token"] != tokens["refresh_token"]
    assert client.get("/only/read", headers=bearer(answer.json()["access_token"])).status_code == 200
    assert_problem(client.post(REFRESH, json=body), 401, "unauthenticated")


def test_the_second_use_of_a_refresh_token_ends_its_whole_family_and_no_other(client: TestClient) -> None:
    stolen, elsewhere = client.post(LOGIN, json=GOOD).json(), client.post(LOGIN, json=GOOD).json()
    second = client.post(REFRESH, headers=bearer(stolen["refresh_token"])).json()
    third = client.post(REFRESH, headers=bearer(second["refresh_token"])).json()
    assert_problem(client.post(REFRESH, headers=bearer(stolen["refresh_token"])), 401, "unauthenticated")
    assert_problem(client.post(REFRESH, headers=bearer(third["refresh_token"])), 401, "unauthenticated")
    assert client.post(REFRESH, headers=bearer(elsewhere["refresh_token"])).status_code == 200


def test_a_refresh_that_the_catalog_fails_can_be_sent_again_and_counts_against_nobody(world: World) -> None:
    client = world.client()
    token = client.post(LOGIN, json=GOOD).json()["refresh_token"]
    for _ in range(LOGIN_FAILURES_PER_MINUTE_PER_IP):
        for event in ("INSERT", "UPDATE"):
            with world.database.write() as connection:
                connection.exec_driver_sql(
                    f"CREATE TRIGGER fails BEFORE {event} ON refresh_tokens BEGIN DELETE FROM missing; END"
                )
            assert_problem(client.post(REFRESH, headers=bearer(token)), 503, "dependency_down")
            with world.database.write() as connection:
                connection.exec_driver_sql("DROP TRIGGER fails")
    answer = client.post(REFRESH, headers=bearer(token))
    assert answer.status_code == 200
    assert client.post(REFRESH, headers=bearer(answer.json()["refresh_token"])).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic eDp5"}])
def test_a_refresh_without_a_token_is_unauthenticated(client: TestClient, headers: dict[str, str]) -> None:
    assert_problem(client.post(REFRESH, headers=headers), 401, "unauthenticated")


def test_an_access_token_cannot_refresh(client: TestClient) -> None:
    assert_problem(client.post(REFRESH, headers=admin(client)), 401, "unauthenticated")


def test_a_refresh_token_ends_after_a_week(world: World, client: TestClient) -> None:
    tokens = client.post(LOGIN, json=GOOD).json()
    world.clock.advance(7 * 24 * 3600 - 1)
    tokens = client.post(REFRESH, headers=bearer(tokens["refresh_token"])).json()
    world.clock.advance(7 * 24 * 3600)
    assert_problem(client.post(REFRESH, headers=bearer(tokens["refresh_token"])), 401, "unauthenticated")


def test_a_new_password_or_being_disabled_ends_the_sessions(world: World, client: TestClient) -> None:
    world.auth.administration.add_user("maria", PASSWORD, ["read"], OPERATOR)
    maria = GOOD | {"username": "maria"}
    for change in ({"password": PASSWORD}, {"disabled": True}):
        tokens = client.post(LOGIN, json=maria).json()
        assert client.patch("/api/v1/users/maria", json=change, headers=admin(client)).status_code == 200
        assert client.get("/only/read", headers=bearer(tokens["access_token"])).status_code == 401
        assert_problem(client.post(REFRESH, headers=bearer(tokens["refresh_token"])), 401, "unauthenticated")


@pytest.mark.parametrize("change", [{"password": "another horse battery"}, {"disabled": True}])
def test_a_login_in_flight_while_the_user_is_changed_leaves_no_session(
    world: World, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    world.auth.administration.add_user("maria", PASSWORD, ["read"], OPERATOR)
    verify = world.auth.passwords.verify

    def verify_slowly(password_hash: str | None, password: str) -> bool:
        fits = verify(password_hash, password)
        monkeypatch.undo()
        world.another_process().administration.change_user("maria", OPERATOR, **change)
        return fits

    monkeypatch.setattr(world.auth.passwords, "verify", verify_slowly)
    assert_problem(world.client().post(LOGIN, json=GOOD | {"username": "maria"}), 401, "unauthenticated")


def test_of_two_logins_that_keep_the_password_anew_at_once_both_get_a_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, rehash = world.accounts.user("admin"), world.auth.administration.rehash
    assert user is not None
    outdated = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1).hash(PASSWORD)
    world.accounts.put_user(dataclasses.replace(user, password_hash=outdated))

    def rehash_after_another(user: User, password: str) -> User:
        monkeypatch.undo()
        world.another_process().sessions.login("admin", PASSWORD, "192.0.2.9")
        return rehash(user, password)

    monkeypatch.setattr(world.auth.administration, "rehash", rehash_after_another)
    tokens = world.client().post(LOGIN, json=GOOD).json()
    assert world.client().get("/only/read", headers=bearer(tokens["access_token"])).status_code == 200


# --- what protects routes -----------------------------------------------------------------------------------------


def test_a_protected_route_takes_a_token_or_a_key_and_asks_for_its_scope(client: TestClient) -> None:
    for scope, static, other in (("read", API_KEY, API_KEY_WS), ("ingest", API_KEY, API_KEY_WS)):
        assert_problem(client.get(f"/only/{scope}"), 401, "unauthenticated")
        assert_problem(client.get(f"/only/{scope}", headers={"X-API-Key": "wrong"}), 401, "unauthenticated")
        assert_problem(client.get(f"/only/{scope}", headers={"X-API-Key": other}), 403, "forbidden")
        for _ in range(2):
            assert client.get(f"/only/{scope}", headers={"X-API-Key": static}).status_code == 200
        assert client.get(f"/only/{scope}", headers=admin(client)).status_code == 200


def test_a_user_without_a_scope_is_forbidden(world: World, client: TestClient) -> None:
    world.auth.administration.add_user("maria", PASSWORD, ["read"], OPERATOR)
    headers = bearer(world.access_token("maria"))
    statuses = {scope: client.get(f"/only/{scope}", headers=headers).status_code for scope in ("read", "live", "admin")}
    assert statuses == {"read": 200, "live": 403, "admin": 403}


def test_a_key_with_admin_alone_reads_nothing(client: TestClient) -> None:
    body = {"name": "k", "scopes": ["admin"]}
    secret = client.post("/api/v1/keys", json=body, headers=admin(client)).json()["secret"]
    assert client.get("/only/admin", headers={"X-API-Key": secret}).status_code == 200
    assert client.get("/only/read", headers={"X-API-Key": secret}).status_code == 403


def test_an_expired_or_forged_token_is_refused(world: World, client: TestClient) -> None:
    headers = admin(client)
    assert client.get("/only/read", headers=headers).status_code == 200
    world.clock.advance(900)
    assert_problem(client.get("/only/read", headers=headers), 401, "unauthenticated")
    claims = jwt.decode(headers["Authorization"][7:], options={"verify_signature": False})
    forged = jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"typ": "at+jwt"})
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"typ": "at+jwt"})
    for token in (forged, unsigned):
        assert_problem(client.get("/only/read", headers=bearer(token)), 401, "unauthenticated")


def test_requests_are_limited_by_credential_and_the_answer_says_where_one_stands() -> None:
    world = make_world(AuthSettings(api_key=API_KEY, api_key_ws=API_KEY_WS, requests_per_minute=2))
    client = world.client()
    answers = [client.get("/only/read", headers={"X-API-Key": API_KEY}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"request";q=2;w=60'
    assert [answer.headers["ratelimit"] for answer in answers] == [f'"request";r={left};t=60' for left in (1, 0, 0)]
    assert answers[2].headers["retry-after"] == "60"
    assert client.get("/only/live", headers={"X-API-Key": API_KEY_WS}).status_code == 200
    world.database.close()


def test_me_says_who_asks(client: TestClient) -> None:
    assert client.get("/api/v1/auth/me", headers=admin(client)).json() == {
        "id": "user:admin",
        "kind": "user",
        "username": "admin",
        "scopes": ["admin", "ingest", "live", "read"],
        "max_ws_connections": 10,
    }
    static = client.get("/api/v1/auth/me", headers={"X-API-Key": API_KEY}).json()
    assert (static["kind"], static["username"], static["scopes"]) == ("static", "API_KEY", ["ingest", "read"])
    assert_problem(client.get("/api/v1/auth/me"), 401, "unauthenticated")


def test_a_ticket_is_given_to_who_may_listen(world: World, client: TestClient) -> None:
    path = "/api/v1/auth/ws-ticket"
    assert_problem(client.post(path), 401, "unauthenticated")
    assert_problem(client.post(path, headers={"X-API-Key": API_KEY}), 403, "forbidden")
    answer = client.post(path, headers={"X-API-Key": API_KEY_WS})
    assert (answer.status_code, answer.json()["expires_in"]) == (201, 30)
    assert world.auth.tickets.redeem(answer.json()["ticket"]).id == "static:api_key_ws"


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_key_is_made_used_listed_and_revoked(world: World, client: TestClient) -> None:
    headers = admin(client)
    body = {"name": "hub", "scopes": ["read"], "expires_at": "2027-01-15T07:00:00-03:00", "max_ws_connections": 2}
    made = client.post("/api/v1/keys", json=body, headers=headers)
    assert made.status_code == 201
    key = made.json()
    assert (key["expires_at"], key["max_ws_connections"]) == ("2027-01-15T10:00:00Z", 2)
    assert client.get("/only/read", headers={"X-API-Key": key["secret"]}).status_code == 200
    listed = client.get("/api/v1/keys", headers=headers)
    assert key["secret"] not in listed.text
    assert listed.json()["keys"][0]["last_used_at"] is not None
    assert client.delete(f"/api/v1/keys/{key['id']}", headers=headers).status_code == 204
    assert_problem(client.get("/only/read", headers={"X-API-Key": key["secret"]}), 401, "unauthenticated")
    assert_problem(client.delete(f"/api/v1/keys/{key['id']}", headers=headers), 404, "not_found")
    acts = [("user:admin", "key.issue", key["id"]), ("user:admin", "key.revoke", key["id"])]
    assert world.audited()[1:] == acts


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 129},
        {"name": "line\nbreak"},
        {"scopes": []},
        {"scopes": ["root"]},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"expires_at": "9999-12-31T23:59:59-12:00"},
        {"expires_at": 1e300},
        {"max_ws_connections": 0},
        {"expiry": "2030-01-01T00:00:00Z"},
    ],
    ids=str,
)
def test_a_key_that_cannot_be_is_refused(world: World, client: TestClient, change: dict[str, object]) -> None:
    body = {"name": "hub", "scopes": ["read"]} | change
    assert_problem(client.post("/api/v1/keys", json=body, headers=admin(client)), 422, "invalid_fields")
    assert world.accounts.keys() == []


def test_managing_needs_the_scope_admin_before_the_body_is_looked_at(client: TestClient) -> None:
    calls = [
        ("POST", "/keys"), ("GET", "/keys"), ("DELETE", "/keys/1"),
        ("POST", "/users"), ("GET", "/users"), ("PATCH", "/users/admin"), ("DELETE", "/users/admin"),
    ]  # fmt: skip
    for method, path in calls:
        assert_problem(client.request(method, f"/api/v1{path}", content=b"{"), 401, "unauthenticated")
        answer = client.request(method, f"/api/v1{path}", content=b"{", headers={"X-API-Key": API_KEY})
        assert_problem(answer, 403, "forbidden")


# --- users --------------------------------------------------------------------------------------------------------


def test_a_user_is_added_changed_listed_and_removed(world: World, client: TestClient) -> None:
    headers = admin(client)
    body = {"username": "maria", "password": "a good password", "scopes": ["read"]}
    added = client.post("/api/v1/users", json=body, headers=headers)
    assert (added.status_code, added.json()) == (201, {"username": "maria", "scopes": ["read"], "disabled": False})
    assert_problem(client.post("/api/v1/users", json=body, headers=headers), 409, "already_exists")
    changed = client.patch("/api/v1/users/maria", json={"scopes": ["admin"]}, headers=headers).json()
    assert changed["scopes"] == ["admin", "ingest", "live", "read"]
    assert client.patch("/api/v1/users/maria", json={}, headers=headers).json() == changed
    listed = client.get("/api/v1/users", headers=headers)
    assert [user["username"] for user in listed.json()["users"]] == ["admin", "maria"]
    assert "argon2" not in listed.text
    assert client.delete("/api/v1/users/maria", headers=headers).status_code == 204
    for method in ("PATCH", "DELETE"):
        assert_problem(client.request(method, "/api/v1/users/maria", json={}, headers=headers), 404, "not_found")
    assert world.audited() == [
        ("first-start", "user.add", "admin"),
        ("user:admin", "user.add", "maria"),
        ("user:admin", "user.change.scopes", "maria"),
        ("user:admin", "user.remove", "maria"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"username": "a b"},
        {"username": "../etc"},
        {"username": "x" * 65},
        {"password": "admin123"},
        {"password": "maria-jose"},
        {"password": "short"},
        {"scopes": []},
    ],
    ids=str,
)
def test_a_user_that_cannot_be_is_refused(client: TestClient, change: dict[str, object]) -> None:
    body = {"username": "maria-jose", "password": "a good password", "scopes": ["read"]} | change
    answer = client.post("/api/v1/users", json=body, headers=admin(client))
    assert_problem(answer, 422, "invalid_fields")
    assert str(change.get("password", "never there")) not in answer.text


def test_a_weak_password_cannot_be_changed_to(client: TestClient) -> None:
    answer = client.patch("/api/v1/users/admin", json={"password": "admin123"}, headers=admin(client))
    assert_problem(answer, 422, "invalid_fields")


def test_the_last_administrator_stays(world: World, client: TestClient) -> None:
    headers = admin(client)
    world.auth.administration.add_user("maria", PASSWORD, ["read"], OPERATOR)
    for change in ({"disabled": True}, {"scopes": ["read"]}):
        assert_problem(client.patch("/api/v1/users/admin", json=change, headers=headers), 409, "conflict")
    assert_problem(client.delete("/api/v1/users/admin", headers=headers), 409, "conflict")
    client.patch("/api/v1/users/maria", json={"scopes": ["admin"]}, headers=headers)
    assert client.delete("/api/v1/users/admin", headers=headers).status_code == 204
    assert_problem(client.get("/api/v1/users", headers=headers), 401, "unauthenticated")


# --- the documentation, and what must stay secret -----------------------------------------------------------------


def test_the_openapi_document_shows_bodies_examples_and_how_to_authenticate(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["ApiKey"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    assert (schemes["Bearer"]["type"], schemes["Bearer"]["scheme"]) == ("http", "bearer")
    flow = schemes["Login"]["flows"]["password"]
    assert (flow["tokenUrl"], set(flow["scopes"])) == (LOGIN, {"ingest", "read", "live", "admin"})
    keys = document["paths"]["/api/v1/keys"]["post"]
    assert keys["security"] == [{"Bearer": []}, {"Login": ["admin"]}, {"ApiKey": []}]
    assert "security" not in document["paths"][LOGIN]["post"]
    for path, method in (
        (LOGIN, "post"), ("/api/v1/auth/device/login", "post"), (REFRESH, "post"), ("/api/v1/keys", "post"),
        ("/api/v1/users", "post"), ("/api/v1/users/{username}", "patch"),
    ):  # fmt: skip
        content = document["paths"][path][method]["requestBody"]["content"]
        assert content["application/json"]["schema"]["examples"]
        assert "$ref" not in str(content)
    assert set(document["paths"][LOGIN]["post"]["requestBody"]["content"]) == {
        "application/json",
        "application/x-www-form-urlencoded",
    }
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(operations)) == len(operations)


def test_no_secret_is_logged_or_shown_by_repr(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = world.client()
    headers = admin(client)
    key = client.post("/api/v1/keys", json={"name": "k", "scopes": ["read"]}, headers=headers).json()["secret"]
    client.get("/only/read", headers={"X-API-Key": key})
    client.get("/only/read", headers={"X-API-Key": key + "x"})
    client.post(LOGIN, json=BAD)
    shown = caplog.text + repr(world.settings) + repr(world.auth) + repr(world.audited())
    for secret in (PASSWORD, BAD["password"], key, API_KEY, API_KEY_WS, headers["Authorization"][7:]):
        assert secret not in shown
