"""The embedded and the distributed form give the same answers to the same day of traffic."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import recorded_day
from cluster import running_cluster
from harness import running

pytestmark = pytest.mark.distributed


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where the two differ; numbers may differ in their last bits, for sums are taken in another order."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{path}: {sorted(one)} or {sorted(other)}"]
        return [found for name in one for found in differences(one[name], other[name], f"{path}/{name}")]
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return [f"{path}: {len(one)} or {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, (mine, theirs) in pairs for found in differences(mine, theirs, f"{path}/{i}")]
    if isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=1e-12):
        return []
    return [] if one == other else [f"{path}: {one!r} or {other!r}"]


def test_embedded_and_distributed_answer_one_recorded_day_alike(tmp_path: Path, services: dict[str, str]) -> None:
    start = recorded_day.start_of(datetime.now(UTC))
    (tmp_path / "embedded").mkdir()
    with running(tmp_path / "embedded" / "data") as embedded, running_cluster(tmp_path, services) as cluster:
        recorded_day.play(embedded, start)
        recorded_day.play(cluster.gateways[0], start)
        expected = recorded_day.answers(embedded, start)
        for gateway in cluster.gateways:
            assert differences(expected, recorded_day.answers(gateway, start)) == []
    assert expected["accounting"]["stored"] > 8_000
