"""Requests made from the OpenAPI document, valid and not: no 5xx, and every answer is one that the document names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from harness import Server, esm_equipment, esm_reading, hours_ago, new_uuid
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = 4
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
ALIASES = {"/api/v1/telemetria/bulk", "/api/telemetria/bulk", "/api/v1/auth/device/login"}
"""Other names of routes that are tried."""


@pytest.fixture(scope="module")
def document(victim: Server) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(victim.url + "/openapi.json").json()
    return answer


@pytest.fixture(scope="module")
def known(victim: Server) -> list[str]:
    """Identifiers that exist, by uuid and by name, and a batch."""
    equipment, sensor = new_uuid(), new_uuid()
    readings = [esm_reading(sensor, 1.5, hours_ago(2)), esm_reading(sensor, 2.5, "no time")]
    batch = victim.stored([esm_equipment(equipment, readings)])
    single = victim.client.post("/temperature_reading", json={"temperature": 1, "sensor_id": "fuzz"})
    assert single.status_code == 201
    return [equipment, sensor, batch["batch_id"], "fuzz", "fuzz/temperature", "admin"]


def operations(document: dict[str, Any]) -> Iterator[Any]:
    """Every operation, but for aliases."""
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if operation.path not in ALIASES:
            yield operation


def cases(operation: Any, known: list[str]) -> Iterator[st.SearchStrategy[tuple[Any, str | None]]]:
    """What the document allows and what it does not, and identifiers that exist to put into the path, or None."""
    allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    yield st.tuples(allowed, st.none())
    if operation.path_parameters and operation.method == "get":
        yield st.tuples(allowed, st.sampled_from(known))
    if operation.path_parameters or operation.query or operation.body:
        yield st.tuples(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), st.none())


class Asker:
    """Asks, and keeps what was wrong with the answers: one example of each kind."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._admin = server.login()
        self.asked = 0
        self.faults: dict[str, str] = {}

    def ask(self, case: Any, identifier: str | None) -> None:
        """One request with every scope."""
        self.asked += 1
        if identifier is not None:
            case.path_parameters = dict.fromkeys(case.path_parameters, identifier)
        answer = case.call(base_url=self._server.url, headers={"Authorization": self._admin.headers["Authorization"]})
        try:
            case.validate_response(answer, checks=CHECKS)
        except Exception as fault:  # noqa: BLE001 - one of many kinds; all are told at the end
            what = f"{case.operation.label} {answer.status_code} {type(fault).__name__}"
            self.faults.setdefault(what, f"{fault}\n{case.as_curl_command()}\n{answer.text[:500]}")


def test_every_answer_is_one_that_the_document_names(
    victim: Server, document: dict[str, Any], known: list[str], seed: int, rounds: int
) -> None:
    asker = Asker(victim)
    configured = hypothesis.settings(
        max_examples=EXAMPLES * rounds, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for operation in operations(document):
        for strategy in cases(operation, known):

            @hypothesis.seed(seed)
            @configured
            @hypothesis.given(strategy)
            def ask(case_and_identifier: tuple[Any, str | None]) -> None:
                asker.ask(*case_and_identifier)

            ask()
    assert asker.asked > 100
    assert not asker.faults, "\n\n".join(f"{what}: {detail}" for what, detail in asker.faults.items())
