"""A day of traffic moves from one process with its embedded stores to gateways and workers, and back."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import recorded_day
from cluster import Cluster
from harness import command, running, wait_until
from test_same_answers import differences

pytestmark = pytest.mark.distributed


def assert_done(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_day_moves_to_gateways_and_workers_and_back_and_is_the_same_day(
    tmp_path: Path, services: dict[str, str]
) -> None:
    start = recorded_day.start_of(datetime.now(UTC))
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    (tmp_path / "embedded").mkdir()
    with running(tmp_path / "embedded" / "data") as embedded:
        recorded_day.play(embedded, start)
        expected = recorded_day.answers(embedded, start)
        assert embedded.stop() == 0
        assert_done(command("export", first, "--everything", server=embedded))
    cluster = Cluster(tmp_path, services)
    try:
        assert_done(cluster.command("migrate", "upgrade"))
        assert_done(cluster.command("import", first, "--everything"))
        cluster.start()
        for gateway in cluster.gateways:
            assert differences(expected, recorded_day.answers(gateway, start)) == []
        before = cluster.gateways[0].accounting()
        request = next(recorded_day.requests(start))
        again = cluster.gateways[0].stored(request.document)
        assert (again["stored"], again["updated"]) == (0, 0), "what came before the move is known after it"
        assert again["duplicate"] == again["readings"]
        received = before["received"] + again["readings"]
        wait_until(lambda: cluster.gateways[1].settled()["received"] == received)
        for node in (*cluster.gateways, *cluster.workers):
            assert node.stop() == 0, node.log
    finally:
        cluster.stop()
    assert_done(cluster.command("export", second, "--everything"))
    assert_done(command("import", second, "--everything", "--data-dir", tmp_path / "back"))
    with running(tmp_path / "back") as back:
        found = recorded_day.answers(back, start)
        assert found["accounting"]["duplicate"] == expected["accounting"]["duplicate"] + again["readings"]
        for name in ("received", "duplicate"):
            expected["accounting"][name] += again["readings"]
        assert differences(expected, found) == []
