"""Logging: one JSON object a line, uvicorn included, and no secret in any of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.web.logs import Access, AccessLog, configure_logging, redact, redact_text, request_id_of_context

SECRET = "hunter2-hunter2-hunter2"
ACCESS = Access("GET", "/x", 200, 1.5, 10, "127.0.0.1", "r1", "key:a", "2024-01-15T10:00:00Z")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_those_of_uvicorn_have_one_form() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)
    structlog.get_logger("sensorkeep.x").info("opened", readings=3)
    logging.getLogger("uvicorn.error").info("Started on port %d", 8000, extra={"color_message": "\x1b[1m"})
    ours, theirs = _lines(stream)
    assert (ours["event"], ours["level"], ours["logger"], ours["readings"]) == ("opened", "info", "sensorkeep.x", 3)
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("Started on port 8000", "info", "uvicorn.error")
    assert ours["timestamp"].endswith("Z")
    assert "color_message" not in theirs


def test_the_level_is_honoured() -> None:
    stream = io.StringIO()
    configure_logging("warning", stream)
    structlog.get_logger("a").info("quiet")
    logging.getLogger("uvicorn.error").info("quiet")
    structlog.get_logger("a").warning("loud")
    assert [line["event"] for line in _lines(stream)] == ["loud"]


def test_lines_carry_the_request_id_of_the_request_being_served() -> None:
    stream = io.StringIO()
    configure_logging("info", stream)
    token = request_id_of_context.set("abc")
    structlog.get_logger("a").info("inside")
    request_id_of_context.reset(token)
    structlog.get_logger("a").info("outside")
    inside, outside = _lines(stream)
    assert inside["request_id"] == "abc"
    assert "request_id" not in outside


@pytest.mark.parametrize(
    "name",
    ["authorization", "Authorization", "x-api-key", "X-API-Key", "api-key", "api_key", "API_KEY_WS", "password",
     "token", "access_token", "refresh_token", "secret", "SECRET_KEY", "ticket", "cookie"],
)  # fmt: skip
def test_fields_that_bear_the_name_of_a_secret_are_not_logged(name: str) -> None:
    stream = io.StringIO()
    configure_logging("debug", stream)
    structlog.get_logger("a").info("sent", **{name: SECRET}, headers={name: [SECRET]}, more=[{name: SECRET}])
    assert SECRET not in stream.getvalue()
    assert "[redacted]" in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        f'127.0.0.1:5 - "WebSocket /ws/sensor_updates?api-key={SECRET}" [accepted]',
        f"GET /x?sensor=1&other={SECRET} HTTP/1.1",
        f"< x-api-key: {SECRET}",
        f"authorization: Bearer {SECRET}",
        f"Authorization=Basic {SECRET}",
        f'{{"password":"{SECRET}"}}',
        f"token={SECRET}&x=1",
        f"the key sk_abc_{SECRET} was used",
    ],
)
def test_secrets_inside_of_text_are_not_logged(text: str) -> None:
    stream = io.StringIO()
    configure_logging("debug", stream)
    logging.getLogger("uvicorn.error").info(text)
    structlog.get_logger("a").info("x", note=text, nested=[{"deep": text}])
    assert SECRET not in stream.getvalue()


def test_a_traceback_is_redacted_too() -> None:
    stream = io.StringIO()
    configure_logging("debug", stream)
    try:
        raise RuntimeError(f"connect failed: password={SECRET} host=db")
    except RuntimeError:
        structlog.get_logger("a").exception("failed")
    (line,) = _lines(stream)
    assert "RuntimeError" in line["exception"]
    assert "host=db" in line["exception"]
    assert SECRET not in line["exception"]


@pytest.mark.parametrize(
    "text", ["What is this? a=b", "batch 7 stored: 3 readings", "https://host/path", "equipment key:abc connected"]
)
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert redact_text(text) == text


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(_json_values)
def test_redaction_keeps_the_shape_and_can_be_done_again(value: Any) -> None:
    once = redact({"value": value})
    assert redact(once) == once
    json.dumps(once)


def test_access_lines_are_gathered_written_and_in_the_form_of_the_others() -> None:
    stream = io.StringIO()

    async def run() -> None:
        log = configure_logging("info", stream)
        for _ in range(3):
            log(ACCESS)
        assert stream.getvalue() == ""
        async with asyncio.timeout(5):
            while not stream.getvalue():
                await asyncio.sleep(0.01)

    asyncio.run(run())
    lines = _lines(stream)
    assert len(lines) == 3
    assert (lines[0]["event"], lines[0]["level"], lines[0]["logger"]) == ("request", "info", "sensorkeep.access")
    assert (lines[0]["route"], lines[0]["status"], lines[0]["credential"]) == ("/x", 200, "key:a")


def _write_one(log: AccessLog) -> None:
    async def run() -> None:
        log(ACCESS)

    asyncio.run(run())
    log.flush()


def test_many_access_lines_are_written_without_waiting() -> None:
    stream = io.StringIO()

    async def run() -> None:
        log = configure_logging("info", stream)
        for _ in range(2_000):
            log(ACCESS)

    asyncio.run(run())
    assert len(_lines(stream)) > 1_000


@pytest.mark.parametrize(("level", "enabled"), [("warning", True), ("info", False)])
def test_the_access_log_is_silent_above_info_or_when_switched_off(level: str, enabled: bool) -> None:
    stream = io.StringIO()
    _write_one(configure_logging(level, stream, access_log=enabled))
    assert stream.getvalue() == ""


def test_on_a_terminal_lines_are_text_for_people() -> None:
    stream = io.StringIO()
    log = configure_logging("info", stream, terminal=True)
    structlog.get_logger("a").info("opened", password=SECRET)
    _write_one(log)
    assert "opened" in stream.getvalue()
    assert "GET /x 200 1.5 ms 127.0.0.1 key:a" in stream.getvalue()
    assert SECRET not in stream.getvalue()
