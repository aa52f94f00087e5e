"""Files as rows: formats, encodings, damage, and going on in the middle."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorkeep.cli import source_files
from sensorkeep.cli.source_files import FileFormat, Place, SourceFile, SourceRow
from sensorkeep.errors import InvalidInput
from sensorkeep.limits import SOURCE_LINE_BYTES_MAX

GOOD = "time,temp\n2024-01-01,1.5\n2024-01-02,2.5\n"


def rows_of(path: Path, start: Place | None = None, **options: Any) -> list[SourceRow]:
    with SourceFile(path, **options) as source:
        return list(source.rows(start or Place()))


def fields_of(rows: list[SourceRow]) -> list[dict[str, Any]]:
    return [row.fields for row in rows if row.fields is not None]


def problems_of(rows: list[SourceRow]) -> list[tuple[int, str]]:
    return [(row.line, row.problem) for row in rows if row.problem is not None]


def write(path: Path, content: str | bytes) -> Path:
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.TXT"])
@pytest.mark.parametrize("mangle", ["", "bom", "crlf", "no newline at the end", "blank lines"])
def test_csv_is_read_however_it_was_saved(tmp_path: Path, name: str, mangle: str) -> None:
    content = {
        "": GOOD,
        "bom": "\ufeff" + GOOD,
        "crlf": GOOD.replace("\n", "\r\n"),
        "no newline at the end": GOOD[:-1],
        "blank lines": "\n" + GOOD.replace("\n", "\n\n"),
    }[mangle]
    rows = rows_of(write(tmp_path / name, content))
    assert fields_of(rows) == [{"time": "2024-01-01", "temp": "1.5"}, {"time": "2024-01-02", "temp": "2.5"}]
    assert not problems_of(rows)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path / "a.csv", GOOD.replace(",", delimiter).replace(".", ","))
    values = [row["temp"] for row in fields_of(rows_of(path))] if delimiter != "," else ["1,5", "2,5"]
    assert values == ["1,5", "2,5"]


def test_a_gzip_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(GOOD.encode()))
    assert len(fields_of(rows_of(path))) == 2


def test_quoted_cells_may_hold_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "a.csv", 'a,b\n"x,""y""\nz",2\n3,4\n'))
    assert fields_of(rows) == [{"a": 'x,"y"\nz', "b": "2"}, {"a": "3", "b": "4"}]
    assert [row.line for row in rows] == [2, 4]


def test_bad_csv_rows_are_named_by_line_and_the_rest_is_read(tmp_path: Path) -> None:
    content = b'a,b\n1,2\n1,2,3\n"open,1\n3,4\n5,\xff\n6,7\n'
    rows = rows_of(write(tmp_path / "a.csv", content))
    assert [row["a"] for row in fields_of(rows)] == ["1", "3", "6"]
    problems = problems_of(rows)
    assert [line for line, _ in problems] == [3, 4, 6]
    assert "3 columns where the header has 2" in problems[0][1]
    assert "not a CSV row" in problems[1][1]
    assert "not utf-8 text" in problems[2][1]
    assert rows[2].text == '"open,1\n'


def test_an_unbalanced_quote_costs_one_row_of_a_long_file(tmp_path: Path) -> None:
    lines = [f"{i},{i}" for i in range(30_000)]
    lines[10_000] = '"10000,1'
    rows = rows_of(write(tmp_path / "a.csv", "a,b\n" + "\n".join(lines)))
    assert [line for line, _ in problems_of(rows)] == [10_002]
    assert len(fields_of(rows)) == 29_999


def test_other_encodings_are_read_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sensor,valor\nDepósito,1\n".encode("latin-1"))
    assert fields_of(rows_of(path, encoding="latin-1")) == [{"sensor": "Depósito", "valor": "1"}]
    for unusable in ("utf-16", "klingon"):
        with pytest.raises(InvalidInput):
            rows_of(path, encoding=unusable)


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "a.csv", "a,b\n1,2\n" + "9" * (3 * SOURCE_LINE_BYTES_MAX) + "\n3,4\n"))
    assert [row["a"] for row in fields_of(rows)] == ["1", "3"]
    assert problems_of(rows) == [(3, f"the line is longer than {SOURCE_LINE_BYTES_MAX} bytes")]
    assert len(rows[1].text) < 1000


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_csv_file_has_a_problem(tmp_path: Path, content: str) -> None:
    assert "no header" in problems_of(rows_of(write(tmp_path / "a.csv", content)))[0][1]


def test_a_column_named_twice_is_a_problem(tmp_path: Path) -> None:
    assert "'a' twice" in problems_of(rows_of(write(tmp_path / "a.csv", "a,b,a\n1,2,3\n")))[0][1]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_truncated_gzip_file_gives_its_rows_and_then_a_problem(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"a": i, "b": str(hash((i, 1)))}) for i in range(20_000)]
    content = {
        "a.csv.gz": "a,b\n" + "\n".join(f"{i},{hash((i, 1))}" for i in range(20_000)),
        "a.jsonl.gz": "\n".join(lines),
        "a.json.gz": "[" + ",\n".join(lines) + "]",
    }[name]
    whole = gzip.compress(content.encode())
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    rows = rows_of(tmp_path / name)
    assert 5_000 < len(fields_of(rows)) < 15_000
    problems = problems_of(rows)
    assert ["cut off" in problem for _, problem in problems] == [True]
    # Nothing that was whole is lost, and the half row at the end is not taken for a row.
    inflated = zlib.decompressobj(31).decompress(whole[: len(whole) // 2])
    assert len(fields_of(rows)) == inflated.count(b"\n") - name.startswith("a.csv")
    (tmp_path / name).write_bytes(b"\x1f\x8b" + b"rubbish" * 10)
    assert "corrupt" in problems_of(rows_of(tmp_path / name))[0][1]


def test_jsonl_rows_are_named_by_line(tmp_path: Path) -> None:
    content = '\ufeff{"a":1}\r\n\n{"a":\n[1]\n{"a":2}\n{"a":3}'
    rows = rows_of(write(tmp_path / "a.ndjson", content))
    assert fields_of(rows) == [{"a": 1}, {"a": 2}, {"a": 3}]
    problems = problems_of(rows)
    assert [line for line, _ in problems] == [3, 4]
    assert "not JSON" in problems[0][1]
    assert problems[1][1] == "not a JSON object"


TRICKY = [
    {"a": 1},
    {"text": 'braces } ] and "quotes" and \\ at the end \\'},
    {"nested": {"list": [{"x": [1, "]"]}], "empty": {}}},
    {"unicode": "\u00b0C \u2028"},
    {},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("piece", [2, 7, 1 << 18])
def test_json_arrays_are_split_wherever_the_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, piece: int
) -> None:
    monkeypatch.setattr(source_files, "SOURCE_READ_BYTES", piece)
    path = write(tmp_path / "a.json", "\ufeff \n" + json.dumps(TRICKY, indent=indent) + "\n")
    rows = rows_of(path)
    assert fields_of(rows) == TRICKY
    assert not problems_of(rows)


def test_a_json_file_may_hold_values_one_after_another(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "\n".join(json.dumps(value, indent=1) for value in TRICKY))
    assert fields_of(rows_of(path)) == TRICKY


@pytest.mark.parametrize(
    ("content", "values", "problem"),
    [
        ('[{"a":1},{"a":2}', 2, "no end"),
        ('[{"a":1},{"a":', 1, "not JSON"),
        ('[{"a":1},7,{"a":tru},"x",{"a":2}]', 2, "not a JSON object"),
        ('[{"a":1}] more', 1, "more after the end"),
        ("[", 0, "no end"),
    ],
)
def test_damaged_json_arrays_give_what_is_whole(tmp_path: Path, content: str, values: int, problem: str) -> None:
    rows = rows_of(write(tmp_path / "a.json", content))
    assert len(fields_of(rows)) == values
    assert problem in problems_of(rows)[0][1]


def test_a_json_value_past_the_bound_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "OBJECT_BUFFER_BYTES", 1000)
    monkeypatch.setattr(source_files, "SOURCE_READ_BYTES", 100)
    rows = rows_of(write(tmp_path / "a.json", '[{"a":1},{"a":"' + "x" * 5000 + '"}]'))
    assert fields_of(rows) == [{"a": 1}]
    assert "longer than 1000 bytes" in problems_of(rows)[0][1]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_reading_goes_on_after_any_row(tmp_path: Path, name: str) -> None:
    values: list[dict[str, str]] = [{"a": f"{i}", "b": "x\ny" if "csv" in name else "°"} for i in range(40)]
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    content = {
        "csv": "\ufeffa,b\r\n" + "".join(f'{value["a"]},"{value["b"]}"\r\n' for value in values),
        "jsonl": "\n".join(lines),
        "json": "[\n" + ",\n".join(lines) + "\n]",
    }[name.split(".")[1]]
    path = write(tmp_path / name, content)
    whole = rows_of(path)
    assert fields_of(whole) == values
    for i, row in enumerate(whole):
        assert rows_of(path, row.end) == whole[i + 1 :]


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), file_format=st.sampled_from(["csv", "json", "jsonl"]), packed=st.booleans())
def test_no_content_makes_reading_raise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, file_format: FileFormat, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(gzip.compress(content) if packed else content)
    for row in rows_of(path, file_format=file_format):
        assert (row.fields is None) != (row.problem is None)


def test_files_that_cannot_be_read_are_usage_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path / "unknown.xlsx"):
        with pytest.raises(InvalidInput) as told:
            SourceFile(path)
        assert told.value.code == "bad_parameter"
