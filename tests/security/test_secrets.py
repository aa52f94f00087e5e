"""No secret that a server knows or is shown reaches its log, its terminal or an answer, however it fails."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness import Server, command
from raw_client import exchange
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

MARK = "Sikret"
SECRET_KEY = f"{MARK}-signing-key-0123456789abcdef"
ADMIN_PASSWORD = f"{MARK}-admin-password-01"
INGEST_KEY = f"{MARK}-ingest-key-0123456789"
LIVE_KEY = f"{MARK}-live-key-0123456789"
USER_PASSWORD = f"{MARK}-user-password-02"


class Watched:
    """A server, and everything that it said."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.secrets = {SECRET_KEY, ADMIN_PASSWORD, INGEST_KEY, LIVE_KEY, USER_PASSWORD, MARK}
        """What must not be said; grows by what the server gives out."""
        self.answers: list[str] = []
        self.http = httpx.Client(base_url=server.url, timeout=30)

    def ask(self, method: str, path: str, **arguments: object) -> httpx.Response:
        """Keep the answer, head and body."""
        answer = self.http.request(method, path, **arguments)  # type: ignore[arg-type]
        self.answers.append(f"{answer.headers!r} {answer.text}")
        return answer

    def login(self, username: str, password: str) -> dict[str, str]:
        """Tokens, which nobody may say from then on. The answer itself is not kept."""
        answer = self.http.post("/api/v1/auth/login", json={"username": username, "password": password})
        assert answer.status_code == 200, answer.text
        tokens: dict[str, str] = answer.json()
        self.secrets |= {tokens["access_token"], tokens["refresh_token"]}
        return tokens


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    server = Server(
        tmp_path_factory.mktemp("secrets") / "data",
        SECRET_KEY=SECRET_KEY, SENSORKEEP_ADMIN_PASSWORD=ADMIN_PASSWORD, API_KEY=INGEST_KEY, API_KEY_WS=LIVE_KEY,
        SENSORKEEP_LOG_LEVEL="debug", SENSORKEEP_CORS_ORIGINS="https://elsewhere.test",
    ).start()  # fmt: skip
    try:
        yield Watched(server)
    finally:
        server.stop()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def provoke_auth(watched: Watched) -> None:
    """Secrets in every place where a credential is taken, and where it is not."""
    tokens = watched.login("admin", ADMIN_PASSWORD)
    admin = bearer(tokens["access_token"])
    made = watched.http.post("/api/v1/keys", json={"name": "watched", "scopes": ["read"]}, headers=admin).json()
    user = {"username": "watched", "password": USER_PASSWORD, "scopes": ["read"]}
    assert watched.ask("POST", "/api/v1/users", json=user, headers=admin).status_code == 201
    ticket = watched.http.post("/api/v1/auth/ws-ticket", headers=admin).json()["ticket"]
    watched.secrets |= {made["secret"], ticket}
    for secret in sorted(watched.secrets):
        for headers in (bearer(secret), {"X-API-Key": secret}, {"Authorization": f"Basic {secret}"},
                        {"Authorization": secret}, {"Cookie": f"session={secret}"}):  # fmt: skip
            watched.ask("GET", "/api/v1/auth/me", headers=headers)
            watched.ask("GET", "/api/v1/nothing", headers=headers)
        watched.ask("GET", "/api/v1/equipment", params={"api-key": secret, "token": secret})
        watched.ask("POST", "/api/v1/auth/login", json={"username": "admin", "password": secret + "x"})
        watched.ask("POST", "/api/v1/auth/login", json={"password": secret})
        watched.ask("POST", "/api/v1/auth/login", json={"username": ["admin"], "password": {"is": secret}})
        watched.ask("POST", "/api/v1/auth/login", content=f'{{"username":"admin","password":"{secret}'.encode())
        watched.ask("POST", "/api/v1/auth/login", data={"username": "admin", "password": secret, "x": "%zz"})
        watched.ask("POST", "/api/v1/auth/login", content=secret.encode(), headers={"Content-Type": "text/plain"})
        watched.ask("POST", "/api/v1/auth/refresh", json={"refresh_token": secret + "x"})
        watched.ask("POST", "/api/v1/auth/refresh", json={"refresh_token": {"is": secret}})
        watched.ask("POST", "/api/v1/users", json={"username": "x y", "password": secret, "scopes": [1]}, headers=admin)
        watched.ask("PATCH", "/api/v1/users/nobody", json={"password": secret, "disabled": 7}, headers=admin)
    watched.ask("GET", "/api/v1/keys", headers=admin)
    watched.ask("GET", "/api/v1/users", headers=admin)


def provoke_ingest(watched: Watched) -> None:
    """Requests with a good key that fail in every way that there is."""
    key = {"X-API-Key": INGEST_KEY}
    bulk = "/api/v1/telemetry/bulk"
    for content in (b"", b"{", b"[]", b"[{}]", b'{"a":1}', b"\x00", gzip.compress(b"[{}]")[:-4]):
        for path in (bulk, "/api/v1/readings", "/api/v1/temperature_reading"):
            watched.ask("POST", path, content=content, headers=key)
            watched.ask("POST", path, content=content, headers=key | {"Content-Encoding": "gzip"})
            watched.ask("POST", path, content=content, headers=key | {"Content-Encoding": "br"})
            watched.ask("POST", path, content=content, headers=key | {"Prefer": "backfill, wait=1"})
    watched.ask("GET", bulk, headers=key)
    for path in ("/api/v1/equipment/x", "/api/v1/analytics/equipment/x/history?period=year", "/metrics",
                 "/api/v1/health/detailed", "/api/v1/telemetry/batches?cursor=x"):  # fmt: skip
        watched.ask("GET", path, headers=key)
    watched.ask("OPTIONS", bulk, headers={"Origin": "https://elsewhere.test", "Access-Control-Request-Method": "POST"})


def provoke_sockets(watched: Watched) -> None:
    """Secrets in the query of a WebSocket, in requests that are no HTTP, and in targets."""
    url = watched.server.url.replace("http", "ws", 1) + "/ws/sensor_updates?api-key="
    for secret in (LIVE_KEY, LIVE_KEY + "x", INGEST_KEY):
        with connect(url + secret) as client, contextlib.suppress(ConnectionClosed, TimeoutError):
            client.send("x")
            watched.answers.append(str(client.recv(0.5)))
    for request in (
        f"GET /ws/sensor_updates?api-key={LIVE_KEY} HTTP/1.1\r\nX-API-Key {LIVE_KEY}\r\n\r\n",
        f"GET /{LIVE_KEY} HTTP/7.1\r\n\r\n",
        f"POST /api/v1/readings HTTP/1.1\r\nHost: x\r\nX-API-Key: {INGEST_KEY}\r\nContent-Length: -1\r\n\r\n",
    ):
        watched.answers.append(repr(exchange(watched.server, request.encode()).content))


def spellings(secret: str) -> set[str]:
    """A secret as it may be found: as it is, in base 64, behind %, and in JSON."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, encoded[:-1], httpx.QueryParams({"": secret}).__str__()[1:], json.dumps(secret)[1:-1]}


def test_no_secret_is_in_the_log_or_in_an_answer(watched: Watched) -> None:
    provoke_auth(watched)
    provoke_ingest(watched)
    provoke_sockets(watched)
    assert watched.ask("POST", "/api/v1/auth/login", json={"username": "watched", "password": "x" * 9}).status_code
    assert len(watched.answers) > 200
    watched.server.stop()
    said = {"the log": watched.server.log, "the terminal": "".join(watched.server.greeting)}
    said |= {f"answer {number}": answer for number, answer in enumerate(watched.answers)}
    for secret in watched.secrets:
        for spelling in spellings(secret):
            for where, text in said.items():
                assert spelling not in text, f"{secret[:12]}… is in {where}: …{excerpt(text, spelling)}…"


def excerpt(text: str, found: str) -> str:
    at = text.index(found)
    return text[max(0, at - 150) : at + len(found) + 50]


# Short secrets: tests/blackbox/test_start.py.
BAD_SETTINGS = {
    "an unknown kind of queue": {"SENSORKEEP_QUEUE_URL": f"amqp://user:{MARK}@queue.test/claims"},
    "a catalog that is no URL": {"SENSORKEEP_CATALOG_URL": f"postgresql://user:{MARK}@[bad/catalog"},
    "a catalog that is not there": {"SENSORKEEP_CATALOG_URL": f"postgresql://user:{MARK}@127.0.0.1:1/catalog"},
    "a store that is not there": {"SENSORKEEP_TSDB_URL": f"postgresql://user:{MARK}@127.0.0.1:1/readings"},
    "pub/sub of an unknown kind": {"SENSORKEEP_PUBSUB_URL": f"amqp://:{MARK}@127.0.0.1:1/0"},
    "a key that fits no header": {"API_KEY": f"{MARK}\u2603 0123456789abcdef"},
    "an object store that is not there": {
        "SENSORKEEP_OBJECT_STORE_URL": "s3://bucket", "MINIO_ENDPOINT": "http://127.0.0.1:1",
        "MINIO_ACCESS_KEY": f"{MARK}-access", "MINIO_SECRET_KEY": f"{MARK}-secret",
    },
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_no_secret_is_in_what_a_start_that_fails_says(what: str, tmp_path: Path) -> None:
    settings = {"SENSORKEEP_DATA_DIR": str(tmp_path / "data"), "SENSORKEEP_PORT": "0"} | BAD_SETTINGS[what]
    done = command("serve", **settings)  # type: ignore[arg-type]
    assert done.returncode != 0
    assert "error: " in done.stderr, done.stderr
    assert MARK not in done.stdout + done.stderr


COMMANDS = {
    "user": ("user", "add", "x y", "--scopes", "nothing"),
    "key": ("key", "add", "x", "--scopes", "nothing"),
    "import": ("import", "nothing.csv"),
    "replay": ("replay", "nothing"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_secret_is_in_an_error_of_the_command_line(fortress: Server, tmp_path: Path, name: str) -> None:
    address = fortress.url.replace("http://", f"http://user:{MARK}@")
    variables = {
        "SENSORKEEP_API_KEY": f"{MARK}-0123456789abcdef", "SENSORKEEP_DATA_DIR": str(tmp_path / "none"),
        "SENSORKEEP_URL": address, "SECRET_KEY": SECRET_KEY,
    }  # fmt: skip
    done = command(*COMMANDS[name], text=f"{MARK}-password-3\n", **variables)  # type: ignore[arg-type]
    assert done.returncode != 0
    assert MARK not in done.stdout + done.stderr
