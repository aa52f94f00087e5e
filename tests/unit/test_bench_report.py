"""The check of the benchmarks: a ratio that fell fails it, noise and missing peers do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import report
from bench.report import Figure, Notes


@pytest.fixture(autouse=True)
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RECORDED", tmp_path / "recorded.json")


def ratio(value: float, name: str = "ratio to a peer") -> Figure:
    return Figure(name, [value - 0.01, value, value + 0.01], 2, is_ratio=True)


def test_a_check_with_nothing_recorded_fails_and_says_what_to_do() -> None:
    assert "--record" in report.check([ratio(1.0)], "quick")[0]


@pytest.mark.parametrize(("value", "fails"), [(1.0, False), (0.81, False), (0.79, True), (1.5, False)])
def test_a_ratio_fails_where_it_is_a_fifth_below_the_recorded_one(value: float, fails: bool) -> None:
    report.record([ratio(1.0)], "quick")
    assert bool(report.check([ratio(value)], "quick")) is fails


def test_forms_are_recorded_apart_and_parts_add_up() -> None:
    report.record([ratio(1.0)], "quick")
    report.record([ratio(5.0)], "full")
    report.record([ratio(2.0, "another")], "quick")
    assert report.check([ratio(1.0), ratio(2.0, "another")], "quick") == []
    assert len(report.check([ratio(1.0)], "full")) == 1


def test_a_peer_that_was_not_measured_is_named_and_fails_nothing() -> None:
    report.record([ratio(1.0), ratio(2.0, "another")], "quick")
    assert report.check([ratio(1.0)], "quick") == []
    assert report.not_measured([ratio(1.0)], "quick") == ["another"]


def test_what_is_no_ratio_is_neither_recorded_nor_checked() -> None:
    rate = Figure("rate", [100.0], 0)
    report.record([rate, ratio(1.0)], "quick")
    assert report.not_measured([], "quick") == ["ratio to a peer"]


def test_the_document_has_every_figure_its_spread_and_the_notes() -> None:
    notes = Notes()
    notes.peer("a peer", "1.2", "does less")
    notes.missing("another", "there is none here")
    text = report.document([ratio(1.0), Figure("start, s", [1.5], 1, "2 / 1")], notes, "full", load=0.0)
    assert "| ratio to a peer | 1.00 | 0.99 to 1.01 |  |" in text
    assert "| start, s | 1.5 |  | 2 / 1 |" in text
    assert "- a peer 1.2: does less." in text
    assert "- another: not measured: there is none here." in text
